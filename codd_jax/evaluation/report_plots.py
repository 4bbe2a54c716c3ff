"""The plots of a report, each as SVG for the page and as PNG beside it."""

import pathlib
from collections.abc import Sequence

from codd_jax.evaluation.results import wilson_interval
from codd_jax.evaluation.runs import Run

COLOURS = {"backbone alone": "#6b7280", "CoDD": "#2a6fbb", "CoDD, any-order": "#c2571a"}
_MARKERS = {"backbone alone": "o", "CoDD": "s", "CoDD, any-order": "D"}


def accuracy_by_pass(runs: Sequence[Run], folder: pathlib.Path, name: str) -> str:
    """Accuracy with its 95 % interval against tokens per forward pass, a point a run; returns the SVG's name."""

    def draw(axes) -> None:
        for run in runs:
            low, high = wilson_interval(run.totals["correct"], run.totals["count"])
            colour, filled = COLOURS[run.method], run.scheduled
            axes.errorbar(
                run.tokens_per_pass,
                100 * run.accuracy,
                yerr=[[100 * (run.accuracy - low)], [100 * (high - run.accuracy)]],
                marker=_MARKERS[run.method],
                color=colour,
                markerfacecolor=colour if filled else "white",
                elinewidth=1,
                capsize=2.5,
                markersize=6.5,
                linestyle="none",
                alpha=0.9,
            )
        for method in COLOURS:
            steady = sorted((run for run in runs if run.method == method), key=lambda run: run.tokens_per_pass)
            for group in _comparable(steady):
                axes.plot(
                    [run.tokens_per_pass for run in group],
                    [100 * run.accuracy for run in group],
                    color=COLOURS[method],
                    linewidth=1.2,
                    alpha=0.45,
                )
        axes.set_xscale("log", base=2)
        _plain_ticks(axes, [run.tokens_per_pass for run in runs])
        axes.set_xlabel("tokens per forward pass")
        axes.set_ylabel("accuracy, %")
        _legend(axes, runs)

    return _save(draw, folder, name)


def speed(runs: Sequence[Run], folder: pathlib.Path, name: str) -> str:
    """Accuracy against tokens a second, a point a run; returns the SVG's name."""

    def draw(axes) -> None:
        for run in runs:
            colour = COLOURS[run.method]
            axes.plot(
                run.tokens_per_second,
                100 * run.accuracy,
                marker=_MARKERS[run.method],
                color=colour,
                markerfacecolor=colour if run.scheduled else "white",
                markersize=7,
                linestyle="none",
                alpha=0.9,
            )
        axes.set_xscale("log", base=2)
        _plain_ticks(axes, [run.tokens_per_second for run in runs])
        axes.set_xlabel("generated tokens per second")
        axes.set_ylabel("accuracy, %")
        _legend(axes, runs)

    return _save(draw, folder, name)


def _comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in their pace alone, two or more."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        kept = {name: value for name, value in run.decoding.items() if name != "steps"}
        groups.setdefault(str(sorted(kept.items(), key=lambda item: item[0])), []).append(run)
    return [group for group in groups.values() if len(group) > 1 and group[0].scheduled]


def _plain_ticks(axes, values: Sequence[float]) -> None:
    """Powers of two as plain numbers, at least two of them in sight."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    low, high = min(values), max(values)
    axes.set_xlim(low / 1.5, high * 1.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(axes, runs: Sequence[Run]) -> None:
    from matplotlib.lines import Line2D

    entries = []
    for method in COLOURS:
        for scheduled in (True, False):
            if any(run.method == method and run.scheduled == scheduled for run in runs):
                colour = COLOURS[method]
                face = colour if scheduled else "white"
                label = method if scheduled else f"{method}, by threshold"
                style = {"marker": _MARKERS[method], "color": colour, "markerfacecolor": face, "linestyle": "none"}
                entries.append(Line2D([], [], label=label, **style))
    axes.legend(handles=entries, frameon=False, loc="best")


def _save(draw, folder: pathlib.Path, name: str) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
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
