"""From results folders to a page that people can read: report.md, report.html, report.json and their plots."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from codd_jax.evaluation import paper_form, report_plots, report_sections
from codd_jax.evaluation.comparison import Pairing, pairings
from codd_jax.evaluation.report_document import Block, Figure, Heading, Paragraph, to_html, to_markdown
from codd_jax.evaluation.results import wilson_interval, write_json
from codd_jax.evaluation.runs import Run, find_runs

TITLE = "Benchmark results"


def write_report(
    folders: Sequence[str | pathlib.Path], output_dir: str | pathlib.Path, *, progress: bool = True
) -> pathlib.Path:
    """Reads runs and writes `report.md`, `report.html` (one file, plots inside), `report.json` and the plots.

    Args:
      folders: run folders, grid folders, or folders that hold such.
      output_dir: where to write; made if it is not there.
      progress: show a bar.

    Returns:
      The path of the HTML page.

    Raises:
      FileNotFoundError: a folder is not there. ValueError: there is no run that can be read in them.
    """
    found, left_out = find_runs(folders)
    runs = report_sections.ordered(found)
    paired, alone = pairings(runs)
    folder = pathlib.Path(output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    plots: list[Block] = []
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(run.task, []).append(run)
    for task, mates in tqdm(by_task.items(), desc="drawing", unit="task", disable=not progress):
        plots += _figures(task, mates, folder)
    blocks = _blocks(runs, paired, alone, left_out, plots)
    write_json(folder / "report.json", _figures_as_json(runs, paired, left_out))
    _write(folder / "report.md", to_markdown(blocks))
    return _write(folder / "report.html", to_html(TITLE, blocks, folder))


def _figures(task: str, runs: Sequence[Run], folder: pathlib.Path) -> list[Block]:
    """The plots of one task; partial runs are no points of theirs."""
    runs = [run for run in runs if not run.status.startswith("partial")]
    if not runs:
        return []
    name = report_sections.task_name(task)
    svg = report_plots.accuracy_by_pass(runs, folder, f"{task}_accuracy_by_tokens_per_pass")
    blocks: list[Block] = [
        Figure(
            svg,
            f"{name}: accuracy with 95 % Wilson intervals against tokens per forward pass; lines join runs that differ "
            "in their number of steps alone",
        )
    ]
    timed = [run for run in runs if run.tokens_per_second]
    if timed:
        svg = report_plots.speed(timed, folder, f"{task}_accuracy_by_speed")
        blocks.append(Figure(svg, f"{name}: accuracy against generated tokens per second"))
    return blocks


def _blocks(
    runs: Sequence[Run],
    paired: Sequence[Pairing],
    alone: Sequence[Run],
    left_out: Sequence[str],
    plots: Sequence[Block],
) -> list[Block]:
    tasks = list(dict.fromkeys(report_sections.task_name(run.task) for run in runs))
    samples = sum(run.totals["count"] for run in runs)
    partial = [run for run in runs if run.status.startswith("partial")]
    about = f"{len(runs)} run{'s' * (len(runs) != 1)} of {', '.join(tasks)}; {samples:,} answers, scored by lm-eval."
    blocks: list[Block] = [Heading(TITLE, 1), Paragraph(about)]
    if partial:
        names = ", ".join(f"`{run.name}`" for run in partial)
        blocks.append(Paragraph(f"**Partial**, and so no result yet: {names}. The same command continues such a run."))
    blocks += report_sections.glance(paired)
    blocks += paper_form.paper_tables(runs)
    blocks += [Heading("Accuracy against cost"), *plots]
    blocks += report_sections.comparisons(paired, alone)
    blocks += paper_form.ablation(runs)
    blocks += paper_form.latency(runs)
    blocks += report_sections.all_runs(runs)
    if left_out:
        blocks += [Heading("Left out"), *(Paragraph(reason) for reason in left_out)]
    return blocks + report_sections.to_repeat(runs)


def _figures_as_json(runs: Sequence[Run], paired: Sequence[Pairing], left_out: Sequence[str]) -> dict[str, Any]:
    """The numbers behind tables and plots."""
    return {
        "runs": [
            {
                "name": run.name,
                "task": run.task,
                "family": run.family,
                "method": run.method,
                "state": run.status,
                "metric": run.headline,
                "accuracy": run.accuracy,
                "interval_95": wilson_interval(run.totals["correct"], run.totals["count"]),
                **run.totals,
                "tokens_per_forward_pass": run.tokens_per_pass,
                "tokens_per_second": run.tokens_per_second,
                "seconds_per_sample": run.seconds_per_sample,
                "settings": run.settings,
                "environment": (run.summary or {}).get("environment"),
            }
            for run in runs
        ],
        "comparisons": [
            {
                "baseline": made.baseline.name,
                "coupled": made.coupled.name,
                "problems": made.count,
                "both": made.both,
                "only_baseline": made.only_baseline,
                "only_coupled": made.only_coupled,
                "neither": made.neither,
                "not_compared": made.left_out,
                "p_value": made.p_value,
            }
            for made in paired
        ],
        "left_out": list(left_out),
    }


def _write(path: pathlib.Path, text: str) -> pathlib.Path:
    """Writes a text in one piece."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path
