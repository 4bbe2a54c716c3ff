"""What the demo shows: a table with 95 % intervals, a plot, and one problem decoded side by side."""

import json
import pathlib
from typing import Any

from experiments.demo_task.problems import Grade

METHODS = {"backbone": "backbone alone", "codd": "CoDD", "any_order": "CoDD, any-order"}
COLOURS = {"backbone": "#7f7f7f", "codd": "#0072b2", "any_order": "#d55e00"}
MARKERS = {"backbone": "s", "codd": "o", "any_order": "^"}


def verdict(grade: Grade) -> str:
    """A grade in words."""
    if grade.solved:
        return "right"
    if grade.coherent:
        return "coherent, wrong number"
    return "mixed phrasings" + (", right number" if grade.answer_right else "")


def markdown_table(result: dict[str, Any]) -> str:
    """The accuracy table: one line a number of steps, for each method the share solved and its interval, in percent."""
    header = ["steps", "tokens per pass"] + [f"{METHODS[name]} (95 %)" for name in METHODS] + ["seconds"]
    lines = [header, ["---:"] * len(header)]
    for steps in result["steps"]:
        cells = {row["method"]: row for row in result["rows"] if row["steps"] == steps}
        accuracy = [
            f"{100 * cell['solved']:.1f} ({100 * cell['solved_low']:.1f}–{100 * cell['solved_high']:.1f})"
            for cell in (cells[name] for name in METHODS)
        ]
        passes = " / ".join(f"{cells[name]['tokens_per_forward']:.1f}" for name in METHODS)
        seconds = " / ".join(f"{cells[name]['seconds']:.1f}" for name in METHODS)
        lines.append([str(steps), passes, *accuracy, seconds])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def example_text(result: dict[str, Any]) -> str:
    """The side-by-side example as plain text."""
    example = result["example"]
    if example is None:
        return (
            "There is no problem on which the backbone alone mixed phrasings, so there is nothing to show side by side."
        )
    lines = [
        f"The first of {example['count']} problems (of {result['problems']}) that the backbone alone answers in mixed "
        f"phrasings, in {example['steps']} step{'s' if example['steps'] > 1 else ''}:",
        "",
        f"  {example['question']}",
        "",
    ]
    width = max(map(len, METHODS.values()))
    for name, label in METHODS.items():
        answer = example["answers"][name]
        lines.append(f"  {label:{width}}  {answer['text']}   [{answer['verdict']}]")
    return "\n".join(lines)


def save_report(result: dict[str, Any], folder: pathlib.Path) -> None:
    """Write table.json, table.md and plot.png to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    text = f"{summary_line(result)}\n\n{markdown_table(result)}\n\n```\n{example_text(result)}\n```\n"
    (folder / "table.md").write_text(text)
    save_plot(result, folder / "plot.png")


def summary_line(result: dict[str, Any]) -> str:
    """What the table's numbers are."""
    return (
        f"Share of {result['problems']} held-out problems that are solved (a whole phrasing with the right numbers), "
        f"in percent; tokens per forward pass and seconds without compilation: {' / '.join(METHODS.values())}."
    )


def save_plot(result: dict[str, Any], path: pathlib.Path) -> None:
    """Accuracy against steps with a band of 95 % for every method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 4.4), layout="constrained")
    for name, label in METHODS.items():
        rows = sorted((row for row in result["rows"] if row["method"] == name), key=lambda row: row["steps"])
        steps = [row["steps"] for row in rows]
        axes.fill_between(
            steps,
            [100 * row["solved_low"] for row in rows],
            [100 * row["solved_high"] for row in rows],
            color=COLOURS[name],
            alpha=0.15,
            linewidth=0,
        )
        solved = [100 * row["solved"] for row in rows]
        axes.plot(steps, solved, color=COLOURS[name], marker=MARKERS[name], markersize=6, linewidth=2, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(result["steps"], [str(steps) for steps in result["steps"]])
    axes.minorticks_off()
    axes.set_ylim(-3, 103)
    axes.set_xlabel("denoising steps for a window of 32 tokens")
    axes.set_ylabel("problems solved, %")
    axes.set_title(f"Built-in demo: {result['problems']} held-out word problems, 95 % bands", fontsize=11)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)
