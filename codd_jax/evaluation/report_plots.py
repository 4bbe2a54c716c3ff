"""The plots of a report, each as SVG for the page and as PNG beside it."""

import pathlib
from collections.abc import Sequence

from codd_jax.evaluation.results import wilson_interval
from codd_jax.evaluation.runs import Run

COLOURS = {"backbone alone": "#6b7280", "CoDD": "#2a6fbb", "CoDD, any-order": "#c2571a"}
# Above so many runs, only those that lead show their intervals.
_CROWD = 8
_MARKERS = {"backbone alone": "o", "CoDD": "s", "CoDD, any-order": "D"}


def accuracy_by_pass(runs: Sequence[Run], folder: pathlib.Path, name: str) -> str:
    """Accuracy with its 95 % interval against tokens per forward pass, a point a run; returns the SVG's name."""

    def draw(axes) -> None:
        for run in runs:
            if (leading := _leads(run, runs)) or len(runs) <= _CROWD:
                low, high = wilson_interval(run.totals["correct"], run.totals["count"])
                error = [[100 * (run.accuracy - low)], [100 * (high - run.accuracy)]]
                axes.errorbar(
                    *(run.tokens_per_pass, 100 * run.accuracy, error),
                    color=COLOURS[run.method],
                    elinewidth=1,
                    capsize=2.5,
                    alpha=0.6,
                    linestyle="none",
                )
            _point(axes, run, run.tokens_per_pass, leading)
        for group in _comparable(runs):
            points = [(run.tokens_per_pass, 100 * run.accuracy) for run in group]
            axes.plot(*zip(*points, strict=True), color=COLOURS[group[0].method], linewidth=1.2, alpha=0.5)
        _finish(axes, runs, [run.tokens_per_pass for run in runs], "tokens per forward pass")

    return _save(draw, folder, name)


def speed(runs: Sequence[Run], folder: pathlib.Path, name: str) -> str:
    """Accuracy against tokens a second, a point a run; returns the SVG's name."""

    def draw(axes) -> None:
        for run in runs:
            _point(axes, run, run.tokens_per_second, _leads(run, runs))
        _finish(axes, runs, [run.tokens_per_second for run in runs], "generated tokens per second")

    return _save(draw, folder, name)


def _leads(run: Run, runs: Sequence[Run]) -> bool:
    """Whether a run is drawn in full: not where the circuit's registered setting stands beside it at the same pace."""

    def place(other: Run):
        return other.method, other.pace, other.family, other.conditions, other.settings.get("num_shot")

    rivals = [other for other in runs if place(other) == place(run)]
    return not run.coupled or run.registered or not any(other.registered for other in rivals)


def _point(axes, run: Run, place: float, leading: bool) -> None:
    colour = COLOURS[run.method]
    axes.plot(
        *(place, 100 * run.accuracy),
        marker=_MARKERS[run.method],
        color=colour,
        linestyle="none",
        zorder=3 if leading else 2,
        markersize=7 if leading else 4,
        alpha=0.95 if leading else 0.35,
        markerfacecolor=colour if run.scheduled else "white",
    )


def _comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in their pace alone, two or more."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.tokens_per_pass):
        if run.scheduled and _leads(run, runs):
            kept = sorted((name, str(value)) for name, value in run.decoding.items() if name != "steps")
            kept += [run.settings.get(name) for name in ("backbone", "circuit", "num_shot")]
            groups.setdefault(str((run.family, kept, run.conditions)), []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def _finish(axes, runs: Sequence[Run], values: Sequence[float], label: str) -> None:
    """Axes, their names, and the legend outside, where no point is."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullLocator

    if max(values) > 4 * min(values) > 0:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(values) / 1.4, max(values) * 1.4)
    else:
        axes.set_xlim(0, max(values) * 1.15 or 1)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy, %")
    entries = []
    for method, colour in COLOURS.items():
        for scheduled in (True, False):
            if any(run.method == method and run.scheduled == scheduled for run in runs):
                style = {"marker": _MARKERS[method], "color": colour, "linestyle": "none"}
                style |= {"markerfacecolor": colour if scheduled else "white", "markersize": 7}
                entries.append(Line2D([], [], label=method if scheduled else f"{method}, by threshold", **style))
    if not all(_leads(run, runs) for run in runs):
        colour = COLOURS["CoDD"]
        style = {"marker": _MARKERS["CoDD"], "color": colour, "linestyle": "none", "markersize": 4, "alpha": 0.35}
        entries.append(Line2D([], [], label="CoDD, settings not registered", **style))
    axes.figure.legend(handles=entries, frameon=False, loc="outside upper center", ncols=3, fontsize=9)


def _save(draw, folder: pathlib.Path, name: str) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(
        {"font.size": 10, "svg.hashsalt": "codd_jax", "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure, axes = pyplot.subplots(figsize=(7.2, 4.1), layout="constrained")
        axes.grid(axis="y", color="#e3e7ec", linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2), min(high, 102))
        # Equal content makes equal files.
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=160)
        pyplot.close(figure)
    return f"{name}.svg"
