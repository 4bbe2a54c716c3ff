"""Rules for training circuits beside each other: equal processor time, several corpora and seeds, one file a run."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from codd_jax.circuits import HMM
from codd_jax.io.workspace import write_json
from codd_jax.jsonfile import read_json
from codd_jax.training.checkpoints import differences
from codd_jax.training.circuit_config import CircuitTraining
from codd_jax.training.potentials import WindowSource
from codd_jax.training.trainer import Diverged, train_circuit

# What a corpus gives for a seed: windows, and the circuit to start from.
Prepare = Callable[[int], tuple[WindowSource, HMM]]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A rule with its settings, under the name that the table calls it."""

    name: str
    settings: Mapping[str, Any]


# At the rules' own rates, `rules.DEFAULT_RATES`.
CONTENDERS: tuple[Contender, ...] = (
    Contender("adam", {"rule": "adam"}),
    Contender("adam, local", {"rule": "adam", "normalization": "local"}),
    Contender("adamax", {"rule": "adamax"}),
    Contender("lion", {"rule": "lion"}),
    Contender("sgd with momentum", {"rule": "momentum"}),
    Contender("ebw", {"rule": "ebw"}),
    Contender("dual_ratio", {"rule": "dual_ratio", "normalization": "local"}),
    Contender("anemone", {"rule": "anemone"}),
    Contender("em", {"rule": "em"}),
)


def at_rates(contenders: Sequence[Contender], factors: Sequence[float]) -> list[Contender]:
    """Every contender at several multiples of its rule's own rate, to see whether that rate is the right one."""
    tuned = []
    for contender in contenders:
        rate = CircuitTraining(**contender.settings).make_rule().rate
        for factor in factors:
            settings = {**contender.settings, "rate": rate * factor}
            tuned.append(Contender(f"{contender.name} at {rate * factor:g}", settings))
    return tuned


def compare_rules(
    corpora: Mapping[str, Prepare],
    folder: str | pathlib.Path,
    *,
    contenders: Sequence[Contender] = CONTENDERS,
    seeds: Sequence[int] = (0, 1, 2),
    seconds: float = 180.0,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs what is not in `folder` yet, and writes comparison.json, comparison.md and comparison.png there.

    Args:
      corpora: by name. seconds: of processor time a run, after its first step.
      about: what else must be equal for runs to stand in one table.
      progress: show a bar.

    Returns:
      What comparison.json holds: `rows`, one for each contender and corpus with mean and range over seeds, and `runs`.
    """
    folder = pathlib.Path(folder)
    planned = [(c, corpus, seed) for seed in seeds for corpus in corpora for c in contenders]
    runs, prepared = [], {}
    for contender, corpus, seed in tqdm(planned, desc="comparing", unit="run", disable=not progress):
        path = folder / "runs" / f"{corpus}-{contender.name.replace(', ', '-').replace(' ', '-')}-{seed}.json"
        settings = {"corpus": corpus, "name": contender.name, "seed": seed, "seconds": seconds, **contender.settings}
        settings |= {"rate": CircuitTraining(**contender.settings).make_rule().rate, **(about or {})}
        if path.is_file():
            record = read_json(path)
            changed = differences(record["settings"], json.loads(json.dumps(settings)))
            if changed:
                raise ValueError(
                    f"{path} was made with other settings:\n  "
                    + "\n  ".join(changed)
                    + "\nremove it, or choose another "
                    "--output_dir"
                )
        else:
            if (corpus, seed) not in prepared:
                prepared = {(corpus, seed): corpora[corpus](seed)}  # one at a time: they are large
            record = _run(*prepared[corpus, seed], contender, seconds)
            record["settings"] = settings
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, record)
        runs.append(record)
    result = {"rows": _rows(runs), "runs": runs}
    write_json(folder / "comparison.json", result)
    (folder / "comparison.md").write_text(comparison_table(result), encoding="utf-8")
    _plot(result, folder / "comparison.png")
    return result


def _run(source: WindowSource, start: HMM, contender: Contender, seconds: float) -> dict[str, Any]:
    """One run: what it reached, or how it failed."""
    config = CircuitTraining(**{**contender.settings, "steps": None, "seconds": seconds, "validate_every": 0})
    try:
        history = train_circuit(source, start, config, progress=False).history
    except Diverged as error:  # a rule that diverges has its place in the table, too
        return {"failed": str(error)}
    last = history["validation"][-1]
    return {
        "failed": None,
        "steps": history["steps"],
        "processor_seconds": history["processor_seconds"],
        "wall_seconds": history["wall_seconds"],
        "backbone": last["backbone"],
        "coupled": last["coupled"],
        "by_share": last["by_share"],
        "training": history["training"],
    }


def _rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means and ranges over seeds, best first within a corpus."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["settings"]["corpus"], run["settings"]["name"]), []).append(run)
    rows = []
    for (corpus, name), found in groups.items():
        good = [run for run in found if run["failed"] is None]
        row = {"corpus": corpus, "name": name, "runs": len(found), "failed": len(found) - len(good)}
        for key in ("backbone", "coupled", "steps"):
            values = [run[key] for run in good]
            row[key] = statistics.fmean(values) if values else None
            row[f"{key}_range"] = [min(values), max(values)] if values else None
        row["full_mask"] = statistics.fmean(run["by_share"][-1]["coupled"] for run in good) if good else None
        rows.append(row)
    return sorted(rows, key=lambda row: (row["corpus"], row["coupled"] is None, row["coupled"] or 0))


def comparison_table(result: Mapping[str, Any]) -> str:
    """The rows in Markdown."""
    lines = ["| corpus | rule | nats per masked token (range over seeds) | backbone alone | above 0.9 masked | steps |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for row in result["rows"]:
        if row["coupled"] is None:
            lines.append(f"| {row['corpus']} | {row['name']} | failed | | | |")
            continue
        low, high = row["coupled_range"]
        failed = f", {row['failed']} of {row['runs']} failed" if row["failed"] else ""
        lines.append(
            f"| {row['corpus']} | {row['name']} | {row['coupled']:.4f} ({low:.4f}–{high:.4f}{failed}) | "
            f"{row['backbone']:.4f} | {row['full_mask']:.4f} | {row['steps']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _plot(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """One bar a rule and corpus, with the range over seeds, and the backbone as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    corpora = sorted({row["corpus"] for row in result["rows"] if row["coupled"] is not None})
    figure, axes = plt.subplots(1, max(1, len(corpora)), figsize=(6 * max(1, len(corpora)), 4), layout="constrained")
    for axis, corpus in zip(axes if len(corpora) > 1 else [axes], corpora, strict=False):
        rows = [row for row in result["rows"] if row["corpus"] == corpus and row["coupled"] is not None][::-1]
        means = [row["coupled"] for row in rows]
        spread = [[m - r["coupled_range"][0] for m, r in zip(means, rows, strict=True)]]
        spread += [[r["coupled_range"][1] - m for m, r in zip(means, rows, strict=True)]]
        axis.barh([row["name"] for row in rows], means, xerr=spread, color="#0072b2", error_kw={"capsize": 3})
        axis.axvline(statistics.fmean(row["backbone"] for row in rows), color="#7f7f7f", label="backbone alone")
        axis.set(xlabel="nats per masked token", title=corpus)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    handles = [line for axis in figure.axes for line in axis.lines if line.get_label() == "backbone alone"]
    figure.legend(handles=handles[:1], loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
