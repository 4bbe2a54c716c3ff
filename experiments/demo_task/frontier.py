"""Accuracy against tokens per forward pass on the demo: even schedules and confidence thresholds, with and without the
circuit, with and without cached keys and values."""

import json
import math
import pathlib
import statistics
from itertools import islice
from typing import Any

from tqdm import tqdm

from codd_jax import CoDD
from experiments.demo_task.decode import BUNDLE, answer, measure
from experiments.demo_task.problems import sample_problems
from experiments.demo_task.report import COLOURS, METHODS

STEPS = (1, 2, 4, 8, 16, 32)
THRESHOLDS = (0.3, 0.5, 0.7, 0.9, 0.97)
CACHES = ("none", "dual")


def run_frontier(
    output_dir: str | pathlib.Path,
    problems: int = 200,
    seed: int = 0,
    bundle: str | pathlib.Path = BUNDLE,
    cache_refresh: int | None = 4,
    progress: bool = True,
) -> dict[str, Any]:
    """Decodes held-out problems in every way; writes frontier.json, frontier.md and frontier.png.

    Args:
      output_dir: where to. problems: how many. seed: which ones, and of decoding.
      bundle: backbone, tokenizer and circuit.
      cache_refresh: passes after which kept keys and values are computed anew. The whole answer is one block here, so
        None leaves them as they were at its beginning.
      progress: show a bar.

    Returns:
      `rows`: as those of the demo's table, with `cache` and `pace`, and for the dual cache `cache_gain` and
      `cache_gain_error`: the paired difference of accuracy against no cache, and half of its 95 % interval.
      `largest_cache_loss`: the most points (per cent) that the dual cache loses anywhere.
    """
    model = CoDD.from_pretrained(bundle, circuit=bundle, dtype="float32")
    drawn = list(islice(sample_problems(seed, held_out=True), problems))
    paces = [(f"{steps} steps", steps, {}) for steps in STEPS]
    paces += [(f"threshold {bound:g}", 1, {"threshold": bound}) for bound in THRESHOLDS]
    rows, solved = [], {}
    with tqdm(total=len(METHODS) * len(CACHES) * len(paces), desc="decoding", unit="run", disable=not progress) as bar:
        for method in METHODS:
            for cache in CACHES:
                for index, (pace, steps, changes) in enumerate(paces):
                    bar.set_postfix_str(f"{METHODS[method]}, {pace}, cache {cache}")
                    changes = {**changes, "cache": cache}
                    changes |= {"cache_refresh": cache_refresh} if cache != "none" else {}
                    if index in (0, len(STEPS)):  # the two kinds of pace compile apart
                        answer(model, drawn, method, steps, seed, problems, **changes)
                    row, graded = measure(model, drawn, method, steps, seed, problems, **changes)
                    solved[method, pace, cache] = [float(grade.solved) for _, grade in graded]
                    row |= {"cache": cache, "pace": pace}
                    if cache != "none":
                        row |= paired_gain(solved[method, pace, "none"], solved[method, pace, cache])
                    rows.append(row)
                    bar.update()
    loss = max(-100 * row["cache_gain"] for row in rows if row["cache"] != "none")
    result = {"problems": problems, "seed": seed, "cache_refresh": cache_refresh, "rows": rows}
    result["largest_cache_loss"] = loss
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "frontier.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / "frontier.md").write_text(frontier_table(result), encoding="utf-8")
    plot_frontier(result, folder / "frontier.png")
    return result


def paired_gain(before: list[float], after: list[float]) -> dict[str, float]:
    """The mean difference over the same problems, and half of its 95 % interval."""
    gains = [second - first for first, second in zip(before, after, strict=True)]
    error = 1.96 * statistics.pstdev(gains) / math.sqrt(len(gains))
    return {"cache_gain": statistics.fmean(gains), "cache_gain_error": error}


def frontier_table(result: dict[str, Any]) -> str:
    """Markdown: a line a method and pace, without cache beside dual cache."""
    cells = {(row["method"], row["pace"], row["cache"]): row for row in result["rows"]}
    lines = [
        "| method | pace | tokens per pass | solved, % | dual cache: tokens per pass | solved, % | gain, points |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method, pace in dict.fromkeys((row["method"], row["pace"]) for row in result["rows"]):
        plain, dual = (cells[method, pace, cache] for cache in CACHES)
        lines.append(
            f"| {METHODS[method]} | {pace} | {plain['tokens_per_forward']:.2f} | {100 * plain['solved']:.1f} | "
            f"{dual['tokens_per_forward']:.2f} | {100 * dual['solved']:.1f} | "
            f"{100 * dual['cache_gain']:+.1f} ± {100 * dual['cache_gain_error']:.1f} |"
        )
    refresh = result["cache_refresh"]
    kept = "never refreshed" if refresh is None else f"refreshed every {refresh} passes"
    return "\n".join(lines) + (
        f"\n\nThe dual cache, {kept}, costs at most {result['largest_cache_loss']:.1f} points of {result['problems']} "
        "problems.\n"
    )


def plot_frontier(result: dict[str, Any], path: pathlib.Path) -> None:
    """Solved problems against tokens per pass: lines for even steps, dashes for thresholds, hollow with the cache."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
    for method, label in METHODS.items():
        for cache in CACHES:
            for kind, style in (("steps", "-o"), ("threshold", "--^")):
                rows = [
                    row
                    for row in result["rows"]
                    if row["method"] == method and row["cache"] == cache and kind in row["pace"]
                ]
                rows.sort(key=lambda row: row["tokens_per_forward"])
                axes.plot(
                    [row["tokens_per_forward"] for row in rows],
                    [100 * row["solved"] for row in rows],
                    style,
                    color=COLOURS[method],
                    markerfacecolor=COLOURS[method] if cache == "none" else "white",
                    linewidth=1.6 if cache == "none" else 0.8,
                    markersize=5,
                    label=f"{label}, {'even steps' if kind == 'steps' else kind}" if cache == "none" else None,
                )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens per forward pass (hollow: dual cache)")
    axes.set_ylabel("problems solved, %")
    axes.set_ylim(-3, 103)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
