"""What a joint fine-tuning run reached, as JSON and as a plot."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from codd_jax.io.workspace import write_json
from codd_jax.training.statistics import BINS, Nats

COLOURS = {"backbone": "#7f7f7f", "coupled": "#0072b2"}
LABELS = {"backbone": "backbone alone", "coupled": "backbone and circuit"}


@dataclasses.dataclass(frozen=True)
class Point:
    """One look at a run.

    Attributes:
      step: updates made. seconds: of training so far.
      backbone, coupled: nats per masked token; None where nothing was masked.
      by_ratio: the same two by masked share of the window, {"0.0-0.1": [backbone, coupled], ...}.
      tokens: masked tokens that were looked at. held_out: whether of held-out rows.
      norms: of the last gradient, by group.
    """

    step: int
    seconds: float
    backbone: float | None
    coupled: float | None
    by_ratio: dict[str, list[float]]
    tokens: int
    held_out: bool
    norms: dict[str, float]

    @classmethod
    def of(cls, step: int, parts: Sequence[Nats], held_out: bool, norms: dict[str, float], seconds: float) -> Self:
        """From the sums of some batches."""
        sums = {name: sum((getattr(part, name) for part in parts), np.zeros(BINS)) for name in ("backbone", "coupled")}
        tokens = sum((part.tokens for part in parts), np.zeros(BINS))
        total = tokens.sum()
        whole = {name: round(float(value.sum() / total), 6) if total else None for name, value in sums.items()}
        by_ratio = {
            f"{bin / BINS:.1f}-{(bin + 1) / BINS:.1f}": [
                round(float(sums[name][bin] / tokens[bin]), 6) for name in ("backbone", "coupled")
            ]
            for bin in range(BINS)
            if tokens[bin]
        }
        return cls(
            step, round(seconds, 2), **whole, by_ratio=by_ratio, tokens=int(total), held_out=held_out, norms=norms
        )


def save_report(
    history: list[dict[str, Any]], folder: pathlib.Path, trained: dict[str, int], config: dict[str, Any]
) -> None:
    """Write history.json and history.png to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "history.json", {"trained_weights": trained, "config": config, "history": history})
    points = [point for point in history if point["coupled"] is not None]
    if points:
        _plot(points, folder / "history.png")


def _plot(points: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Nats per masked token against updates."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 4.4), layout="constrained")
    for name, label in LABELS.items():
        steps, values = [point["step"] for point in points], [point[name] for point in points]
        axes.plot(steps, values, color=COLOURS[name], marker="o", markersize=4, linewidth=2, label=label)
    axes.set_xlabel("updates")
    kind = "held-out" if points[-1]["held_out"] else "training"
    axes.set_ylabel(f"nats per masked token ({kind})")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
