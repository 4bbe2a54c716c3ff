"""A latency run as a table and as a plot."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

NAMES = {"backbone": "backbone alone", "codd": "CoDD", "ao": "CoDD, any-order"}


def table(result: Mapping[str, Any]) -> str:
    """Markdown: seconds per sample in the form of the paper's table 3, then a step's parts, then the PyTorch loop."""
    lines = [
        f"Rates of this machine in this run: {result['rates']['flops_per_second'] / 1e9:,.1f} GFLOP/s for a "
        f"{result['rates']['dtype']} matrix product, {result['rates']['bytes_per_second'] / 1e9:,.1f} GB/s.",
        "",
        "| batch | cache | method | pace | steps used | s / sample | tokens/s | tokens per pass | over the backbone |",
        "| ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["answers"]:
        extra = "" if row["overhead"] is None else f"{row['overhead']:+.1%}"
        lines.append(
            f"| {row['batch']} | {row['cache']} | {NAMES[row['method']]} | {pace(row)} | {row['steps_used']:.0f} | "
            f"{row['seconds_per_sample']:.3f} | {row['tokens_per_second']:.1f} | {row['tokens_per_forward']:.2f} | "
            f"{extra} |"
        )
    lines += [
        "",
        "| batch | part of a step | ms | floor, ms | share of the floor |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for row in result["parts"]:
        for part, seconds in row["seconds"].items():
            floor, share = row["floor"].get(part), row["share_of_floor"].get(part)
            told = "| | |" if floor is None else f"| {floor * 1e3:.2f} | {share:.0%} |"
            lines.append(f"| {row['batch']} | {part} | {seconds * 1e3:.2f} {told}")
    if "peer" in result:
        peer = result["peer"]
        lines += ["", "| steps | public PyTorch loop, s | speed-up | tokens equal |", "| ---: | ---: | ---: | --- |"]
        for row in peer["answers"]:
            lines.append(
                f"| {row['steps']} | {row['seconds_per_sample']:.3f} | {row['speed_up']:.2f} | {row['tokens_equal']} |"
            )
        lines += ["", f"Full-logits forward pass: {peer['forward_speed_up']:.2f} times the speed of the public one."]
    return "\n".join(lines) + "\n"


def pace(row: Mapping[str, Any]) -> str:
    """What set the number of steps."""
    return f"{row['steps']} steps" if "steps" in row else f"threshold {row['threshold']:g}"


def plot(result: Mapping[str, Any], path: str | pathlib.Path) -> None:
    """Seconds per sample of every case as bars, one panel per batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    batches = sorted({row["batch"] for row in result["answers"]})
    longest = max(sum(row["batch"] == batch for row in result["answers"]) for batch in batches)
    figure, panels = pyplot.subplots(
        1, len(batches), figsize=(6 * len(batches), 1.2 + 0.32 * longest), squeeze=False, layout="constrained"
    )
    colours = dict(zip(NAMES, ("#8a8f98", "#2a6fbb", "#d1622b"), strict=True))
    for panel, batch in zip(panels[0], batches, strict=True):
        rows = [row for row in result["answers"] if row["batch"] == batch]
        labels = [f"{NAMES[row['method']]}, {pace(row)}, cache {row['cache']}" for row in rows]
        seconds = [row["seconds_per_sample"] for row in rows]
        bars = panel.barh(range(len(rows)), seconds, color=[colours[row["method"]] for row in rows])
        panel.bar_label(bars, fmt="%.2f", padding=3)
        panel.set_yticks(range(len(rows)), labels)
        panel.invert_yaxis()
        panel.set_xlabel("seconds per sample")
        panel.set_title(f"batch {batch}")
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
