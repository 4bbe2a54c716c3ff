"""What a training run did, as JSON and as a plot beside it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from codd_jax.io.workspace import write_json
from codd_jax.training.statistics import BINS, Nats

COLOURS = {"backbone": "#7f7f7f", "coupled": "#0072b2"}


def per_token(nats: Nats) -> dict[str, float | None]:
    """Nats per masked token over all shares; None where no token was masked."""
    tokens = float(np.sum(nats.tokens))
    return {
        name: float(np.sum(getattr(nats, name))) / tokens if tokens else None for name in ("backbone", "coupled")
    } | {"failures": float(nats.failures)}


def by_share(nats: Nats) -> list[dict[str, Any]]:
    """One record for each tenth of the masked share."""
    return [
        {
            "share": round((place + 1) / BINS, 3),
            "tokens": float(nats.tokens[place]),
            "backbone": float(nats.backbone[place] / max(nats.tokens[place], 1)),
            "coupled": float(nats.coupled[place] / max(nats.tokens[place], 1)),
        }
        for place in range(BINS)
    ]


def save_history(folder: str | pathlib.Path, history: Mapping[str, Any], name: str = "history") -> pathlib.Path:
    """Writes `<name>.json` and, where there is something to draw, `<name>.png`; returns the former's path."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    write_json(path, history)
    if history["training"] or history["validation"]:
        _plot(history, folder / f"{name}.png")
    return path


def _plot(history: Mapping[str, Any], path: pathlib.Path) -> None:
    """Nats per masked token against steps, and against the masked share at the last validation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    validation = history["validation"]
    figure, axes = plt.subplots(1, 2 if validation else 1, figsize=(10 if validation else 6, 4), layout="constrained")
    left = axes[0] if validation else axes
    for name, colour in COLOURS.items():
        for part, style in (("training", {"alpha": 0.35, "linewidth": 1}), ("validation", {"marker": "o", "ms": 3})):
            points = [(entry["step"], entry[name]) for entry in history[part] if entry.get(name) is not None]
            if points:
                left.plot(*zip(*points, strict=True), color=colour, label=f"{name}, {part}", **style)
    left.set(xlabel="steps", ylabel="nats per masked token", yscale="log")
    if left.lines:
        left.legend(frameon=False)
    if validation:
        last = validation[-1]
        for name, colour in COLOURS.items():
            points = [(row["share"], row[name]) for row in last["by_share"] if row["tokens"]]
            axes[1].plot(*zip(*points, strict=True), color=colour, marker="o", ms=3, label=name)
        axes[1].set(xlabel="masked share of the window", ylabel="nats per masked token", yscale="log")
        axes[1].set_title(f"validation at step {last['step']}", fontsize=10)
        axes[1].legend(frameon=False)
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
