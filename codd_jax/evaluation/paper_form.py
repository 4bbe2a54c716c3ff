"""Runs in the form of the paper's tables: accuracy (1 and 2), latency (3), ablation (4 and 5)."""

from collections.abc import Callable, Iterable, Sequence

from codd_jax.evaluation.paper_tables import ABLATION, ACCURACY, LATENCY, PAPER, AblationKey, AccuracyKey
from codd_jax.evaluation.report_document import Block, Heading, Paragraph, Table
from codd_jax.evaluation.report_sections import (
    NONE,
    circuit_settings,
    family_name,
    hardware,
    interval,
    percent,
    task_name,
)
from codd_jax.evaluation.runs import Run, differences_of

# The paper's generations; figures of other lengths do not compare.
_PAPER_LENGTH = 512


def paper_tables(runs: Sequence[Run]) -> list[Block]:
    """Accuracy in the form of the paper's tables 1 and 2: a table for each backbone and length."""
    plain = [run for run in runs if run.scheduled and run.decoding.get("cache", "none") == "none"]
    blocks: list[Block] = []
    for title, length, group in _tables(plain):
        family, columns = group[0].family, list(_grouped(group, _column))
        rows = []
        for (method, remasking), mates in _grouped(
            group, lambda run: (run.method, run.decoding.get("remasking", "?"))
        ).items():
            cells = []
            for task, shots, steps in columns:
                here = [run for run in mates if _column(run) == (task, shots, steps)]
                key = AccuracyKey(family, method != "backbone alone", remasking, task, steps)
                cells.append(_accuracy_cell(here, ACCURACY.get(key) if _as_in_paper(here, length) else None))
            rows.append((method, remasking, *cells))
        blocks.append(Heading(title, 3))
        blocks.append(Table(("", "order", *_column_names(columns)), rows, left=(0, 1)))
    if not blocks:
        return []
    note = (
        "Per cent of problems solved, with 95 % Wilson intervals, or the range over seeds; beneath, the paper's figure "
        f"where it has one ({PAPER}, tables 1 and 2, {_PAPER_LENGTH} tokens, 8B and 7B models). Where several settings "
        "were run, the one registered beforehand leads, or else the first, and the best follows: choosing the best of "
        "several is optimistic."
    )
    return [Heading("Accuracy, in the form of the paper's tables 1 and 2"), Paragraph(note), *blocks]


def _as_in_paper(runs: Sequence[Run], length: int) -> bool:
    """Whether the paper's figure may stand beside these runs, or in their empty place."""
    return length == _PAPER_LENGTH and all(run.as_in_paper for run in runs)


def _source(run: Run) -> str:
    source = run.settings.get("backbone")
    name = source.get("source") if isinstance(source, dict) else source
    return f" ({name})" if name else ""


def _accuracy_cell(runs: Sequence[Run], paper: float | None) -> str:
    """Solved, in per cent, of the setting that leads, of the best, and in the paper; means over seeds."""
    lines = [NONE]
    if runs:
        settings = list(_grouped(runs, lambda run: (run.circuit, circuit_settings(run))).values())
        main = next((mates for mates in settings if mates[0].registered), settings[0])
        best = max(settings, key=_accuracy)
        lines = _solved(main)
        if len(settings) > 1:
            lines.append(f"best of {len(settings)}: {percent(_accuracy(best))}\n{circuit_settings(best[0])}")
            several = len({run.circuit for run in runs}) > 1
            lines[-1] += f", circuit {best[0].circuit}" if several else ""
        if main[0].status != "complete":
            lines.append(main[0].status)
    if paper is not None:
        lines.append(f"paper {paper:.2f}")
    return "\n".join(lines)


def _accuracy(seeds: Sequence[Run]) -> float:
    return sum(run.accuracy for run in seeds) / len(seeds)


def _solved(seeds: Sequence[Run]) -> list[str]:
    """Lines for runs that differ in their seeds alone: accuracy, and its interval or its range over seeds."""
    if len(seeds) == 1:
        return [percent(seeds[0].accuracy), interval(seeds[0])]
    found = [run.accuracy for run in seeds]
    return [percent(_accuracy(seeds)), f"{percent(min(found))} – {percent(max(found))}, {len(seeds)} seeds"]


def ablation(runs: Sequence[Run]) -> list[Block]:
    """pc_frac by τ in the form of the paper's tables 4 and 5, where more than one setting was run."""
    coupled = [run for run in runs if run.coupled and run.scheduled and run.decoding.get("cache", "none") == "none"]
    blocks: list[Block] = []
    split = [
        (title, length, (task, method), group)
        for title, length, mates in _tables(coupled)
        for (task, _, method, _), group in _grouped(mates, lambda r: (*_column(r)[:2], r.method, r.circuit)).items()
        if len({circuit_settings(run) for run in group}) > 1
    ]
    circuits = {group[0].circuit for *_, group in split}
    for title, length, (task, method), group in split:
        family = group[0].family
        method += f" with {group[0].circuit}" if len(circuits) > 1 else ""
        shares = sorted({run.decoding.get("pc_frac") for run in group}, key=lambda share: (share is None, share))
        columns = list(_grouped(group, _ablation_column))
        rows = []
        for share in shares:
            cells = []
            for column in columns:
                here = [r for r in group if r.decoding.get("pc_frac") == share and _ablation_column(r) == column]
                lines = _solved(here) if here else [NONE]
                key = AblationKey(family, task, *column, share)
                if _as_in_paper(here, length) and key in ABLATION:
                    lines.append(f"paper {ABLATION[key]:.2f}")
                cells.append("\n".join(lines))
            rows.append(("always" if share is None else f"{share:g}", *cells))
        header = ("pc_frac", *(f"{steps} steps, {order}, τ {tau:g}" for steps, order, tau in columns))
        blocks += [Heading(f"{task_name(task)}, {method}: {title}", 3), Table(header, rows)]
    if not blocks:
        return []
    note = "Accuracy in per cent by the share of masks below which the circuit is used, and by its temperature τ."
    return [Heading("Ablation, in the form of the paper's tables 4 and 5"), Paragraph(note), *blocks]


def _ablation_column(run: Run) -> tuple[int, str, float]:
    return run.decoding.get("steps"), run.decoding.get("remasking"), run.decoding.get("pc_temperature")


def latency(runs: Sequence[Run]) -> list[Block]:
    """Seconds a sample in the form of the paper's table 3."""
    plain = [run for run in runs if run.scheduled and run.decoding.get("cache", "none") == "none"]
    split = [
        (title, length, machine, group)
        for title, length, mates in _tables(plain)
        for machine, group in _grouped(mates, hardware).items()
    ]
    blocks: list[Block] = []
    for title, length, machine, group in split:
        columns = list(_grouped(group, _column))
        rows = []
        for method, mates in _grouped(group, lambda run: run.method).items():
            cells = []
            for column in columns:
                here = [run for run in mates if _column(run) == column]
                task, _, steps = column
                mean = sum(run.seconds_per_sample for run in here) / len(here) if here else None
                lines = [NONE if mean is None else f"{mean:.3g}"]
                lines += [f"mean of {len(here)} runs"] if len(here) > 1 else []
                name = {"backbone alone": "backbone", "CoDD": "latent"}.get(method, "any_order")
                paper = LATENCY.get((group[0].family, name, task, steps))
                if _as_in_paper(here, length) and paper is not None:
                    lines.append(f"paper {paper:.2f}")
                cells.append("\n".join(lines))
            rows.append((method, *cells))
        blocks.append(Heading(f"{title}, on {machine}", 3))
        blocks.append(Table(("", *_column_names(columns)), rows))
    if not blocks:
        return []
    note = (
        "Seconds of all devices together per sample within a batch; compilation that fell into a run counts. The "
        "paper's table 3 does not name its machine; `experiments/latency.py` measures latency by itself."
    )
    return [Heading("Latency, in the form of the paper's table 3"), Paragraph(note), *blocks]


def _tables(runs: Sequence[Run]) -> list[tuple[str, int, list[Run]]]:
    """(title, generated tokens, runs) of every table: runs of one backbone under the same conditions."""

    def backbone(run: Run):
        return run.family, str(run.settings.get("backbone")), run.decoding.get("gen_length")

    tables = []
    for (family, _, length), mates in _grouped(runs, backbone).items():
        groups = list(_grouped(mates, lambda run: tuple(run.conditions.items())).values())
        for group, varied in zip(groups, differences_of([group[0].conditions for group in groups]), strict=True):
            title = f"{family_name(family)}{_source(group[0])}, {length} tokens"
            tables.append((f"{title}, {varied}" if varied else title, length, group))
    return tables


def _column(run: Run) -> tuple[str, int | None, int]:
    """(task, worked examples, steps)."""
    return run.task, run.settings.get("num_shot"), run.decoding.get("steps")


def _column_names(columns: Sequence[tuple[str, int | None, int]]) -> list[str]:
    """Names of columns; they tell the number of worked examples where a task has several."""
    shots = _grouped(columns, lambda column: column[0])
    several = {task for task, found in shots.items() if len({column[1] for column in found}) > 1}
    return [
        f"{task_name(task)}{f', {number}-shot' if task in several else ''}, {steps} steps"
        for task, number, steps in columns
    ]


def _grouped(things: Iterable, kind: Callable[..., object]) -> dict:
    """Things by kind, in the order of first appearance."""
    groups: dict = {}
    for thing in things:
        groups.setdefault(kind(thing), []).append(thing)
    return groups
