"""The curves as numbers with intervals, as a table and as a plot."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

# Below this gap between one step and token by token, in nats, its closed share means nothing.
LEAST_GAP = 0.02
# A circuit is "no worse" at a ratio while the upper bound of its paired difference stays below the larger of the two.
RELATIVE_BOUND, ABSOLUTE_BOUND = 0.005, 1e-4


def summarise_curves(lines: Sequence[dict[str, Any]], ratios: Sequence[float]) -> dict[str, Any]:
    """Means over windows with 95 % intervals; orders of one window are averaged before.

    Args:
      lines: from `curves.measure_curves`. ratios: the mask ratios of their entries.

    Returns:
      `ratios`; `methods`: by name (sequential, factorised, and the circuits) `nll`, `low`, `high` and `perplexity`,
      lists over the ratios in nats per masked token, sequential carried over from its windows to all of them by the
      paired difference to factorised; `difference`: by circuit the paired difference to the factorised
      curve, `mean`, `low`, `high`, the bound `limit` and whether it is kept, `within`; `gap_closed`: by circuit the
      share of (factorised - sequential) that is closed, on the windows that have both, None where the gap is below
      0.02 nats.
    """
    names = list(lines[0]["coupled"])
    nll = {"factorised": _by_window(lines, lambda line: line["factorised"])}
    nll |= {name: _by_window(lines, lambda line, name=name: line["coupled"][name]) for name in names}
    both = [line for line in lines if line["sequential"] is not None]
    methods = {name: _interval(values) for name, values in nll.items()}
    result: dict[str, Any] = {"ratios": list(ratios), "windows": len(nll["factorised"]), "methods": methods}
    result["difference"] = {}
    for name in names:
        difference = _interval(nll[name] - nll["factorised"], perplexity=False)
        limit = [max(RELATIVE_BOUND * value, ABSOLUTE_BOUND) for value in methods["factorised"]["nll"]]
        difference["mean"] = difference.pop("nll")
        within = [high <= bound for high, bound in zip(difference["high"], limit, strict=True)]
        result["difference"][name] = {**difference, "limit": limit, "within": within}
    if both:
        sequential = _by_window(both, lambda line: line["sequential"])
        factorised = _by_window(both, lambda line: line["factorised"])
        methods["sequential"] = _carry_over(nll["factorised"], factorised - sequential)
        a, b = sequential.mean(0), factorised.mean(0)
        result["sequential_windows"] = len(sequential)
        result["gap_closed"] = {}
        for name in names:
            c = _by_window(both, lambda line, name=name: line["coupled"][name]).mean(0)
            result["gap_closed"][name] = [
                float((b[i] - c[i]) / (b[i] - a[i])) if b[i] - a[i] >= LEAST_GAP else None for i in range(len(a))
            ]
    return result


def _carry_over(every: np.ndarray, gap: np.ndarray) -> dict[str, list[float]]:
    """The mean of `every` window [all, ratios] less the paired `gap` [some, ratios], with its 95 % interval.

    Windows differ far more from each other than the gap does, so this is both closer and comparable with curves that
    rest on all windows. Without windows beyond those of the gap it is their plain mean.
    """
    if len(every) == len(gap):
        return _interval(every - gap)
    whole, less = _interval(every), _interval(gap)
    mean = np.asarray(whole["nll"]) - np.asarray(less["nll"])
    spread = np.hypot(*(np.asarray(part["high"]) - np.asarray(part["nll"]) for part in (whole, less)))
    bounds = {"low": (mean - spread).tolist(), "high": (mean + spread).tolist()}
    return {"nll": mean.tolist(), **bounds, "perplexity": np.exp(mean).tolist()}


def _by_window(lines, pick) -> np.ndarray:
    """[windows, ratios] nats per masked token, averaged over the orders of each window."""
    found: dict[int, list[np.ndarray]] = {}
    for line in lines:
        found.setdefault(line["window"], []).append(-np.asarray(pick(line)) / np.asarray(line["masked"]))
    return np.stack([np.mean(found[window], axis=0) for window in sorted(found)])


def _interval(values: np.ndarray, perplexity: bool = True) -> dict[str, list[float]]:
    """Mean over windows and its normal 95 % interval, [windows, ratios] → lists over ratios."""
    mean = values.mean(0)
    spread = 1.96 * values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full_like(mean, np.inf)
    out = {"nll": mean.tolist(), "low": (mean - spread).tolist(), "high": (mean + spread).tolist()}
    return out | ({"perplexity": np.exp(mean).tolist()} if perplexity else {})


def curves_table(result: dict[str, Any]) -> str:
    """Markdown: nats per masked token of every method, then what each circuit changes."""
    head = "| mask ratio | " + " | ".join(f"{ratio:g}" for ratio in result["ratios"]) + " |"
    rule = "| --- |" + " ---: |" * len(result["ratios"])
    lines = [head, rule]
    for name in ("sequential", "factorised", *result["difference"]):
        if name in result["methods"]:
            cells = " | ".join(f"{value:.4f}" for value in result["methods"][name]["nll"])
            lines.append(f"| {_label(name)} | {cells} |")
    if "sequential_windows" in result:
        lines += ["", f"{result['windows']} windows; token by token the first {result['sequential_windows']} of them."]
    lines += ["", "Difference to the backbone alone with its 95 % interval, paired by window:", "", head, rule]
    for name, difference in result["difference"].items():
        cells = [
            f"{mean:+.4f} ({low:+.4f} … {high:+.4f})"
            for mean, low, high in zip(difference["mean"], difference["low"], difference["high"], strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if "gap_closed" in result:
        lines += ["", "Share of the misspecification gap that is closed:", "", head, rule]
        for name, shares in result["gap_closed"].items():
            cells = " | ".join("" if share is None else f"{share:.1%}" for share in shares)
            lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def plot_curves(result: dict[str, Any], path: str | pathlib.Path) -> None:
    """Perplexity against mask ratio with bands, the misspecification gap shaded, and the paired differences."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    ratios = result["ratios"]
    colours = {"sequential": "#3d8f5f", "factorised": "#8a8f98"}
    palette = iter(("#2a6fbb", "#d1622b", "#7a4fb0", "#b03a5b"))
    colours |= {name: next(palette, "#444444") for name in result["difference"]}
    for name in ("sequential", "factorised", *result["difference"]):
        if name not in result["methods"]:
            continue
        curve = result["methods"][name]
        left.plot(ratios, curve["perplexity"], marker="o", ms=3.5, color=colours[name], label=_label(name))
        left.fill_between(ratios, np.exp(curve["low"]), np.exp(curve["high"]), color=colours[name], alpha=0.15, lw=0)
    if "sequential" in result["methods"]:
        gap = [result["methods"][name]["perplexity"] for name in ("sequential", "factorised")]
        left.fill_between(ratios, *gap, color="#d9d9d9", alpha=0.35, lw=0, label="misspecification gap", zorder=0)
    left.set(xlabel="mask ratio", ylabel="perplexity of a masked token", yscale="log")
    for name, difference in result["difference"].items():
        right.plot(ratios, difference["mean"], marker="o", ms=3.5, color=colours[name], label=name)
        right.fill_between(ratios, difference["low"], difference["high"], color=colours[name], alpha=0.15, lw=0)
    right.axhline(0, color="#8a8f98", lw=1)
    right.set(xlabel="mask ratio", ylabel="nats per masked token, coupled less backbone alone", yscale="symlog")
    right.set_yscale("symlog", linthresh=1e-3)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _label(name: str) -> str:
    return {"sequential": "token by token", "factorised": "one step, backbone alone"}.get(name, f"one step, {name}")
