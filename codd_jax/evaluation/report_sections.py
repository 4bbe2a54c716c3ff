"""The sections of a report, from runs to blocks: what stands out, all runs, comparisons, what to repeat."""

import json
from collections.abc import Iterable, Sequence

from codd_jax.evaluation.comparison import Pairing
from codd_jax.evaluation.report_document import Block, Bullets, Details, Heading, Paragraph, Table
from codd_jax.evaluation.results import wilson_interval
from codd_jax.evaluation.runs import Run

FAMILY_NAMES = {"llada": "LLaDA", "dream": "Dream"}
TASK_NAMES = {"math500": "MATH500", "gsm8k": "GSM8K", "gpqa": "GPQA", "mbpp": "MBPP"}
_METHODS = ("backbone alone", "CoDD", "CoDD, any-order")
NONE = "–"


def percent(share: float) -> str:
    """A share as per cent with two digits, as the paper has them."""
    return f"{100 * share:.2f}"


def interval(run: Run) -> str:
    """A run's 95 % Wilson interval in per cent."""
    low, high = wilson_interval(run.totals["correct"], run.totals["count"])
    return f"{100 * low:.1f} – {100 * high:.1f}"


def task_name(task: str) -> str:
    """A task's name as the paper writes it."""
    return TASK_NAMES.get(task, task)


def family_name(family: str) -> str:
    """A family's name as the paper writes it."""
    return FAMILY_NAMES.get(family, family)


def circuit_settings(run: Run) -> str:
    """τ, pc_frac and what else is set about the circuit of a coupled run."""
    if not run.coupled:
        return NONE
    share = run.decoding.get("pc_frac")
    reversed_ = ", reversed" * bool(run.decoding.get("reverse_frac"))
    shown = "always" if share is None else f"{share:g}"
    further = "".join(
        f", {name} {run.decoding[name]}"
        for name, usual in (("windows", None), ("normalization", None), ("pc_temperature_on", "potentials"))
        if run.decoding.get(name, usual) != usual
    )
    return f"τ {run.decoding.get('pc_temperature', 1):g}, pc_frac {shown}{reversed_}{further}"


def ordered(runs: Iterable[Run]) -> list[Run]:
    """Runs by task, backbone, method, order of unmasking and pace."""
    tasks = list(TASK_NAMES)

    def place(run: Run):
        task = tasks.index(run.task) if run.task in tasks else len(tasks)
        return (
            *(task, run.task, run.family, str(run.settings.get("backbone")), _METHODS.index(run.method)),
            *(str(run.decoding.get("remasking")), not run.scheduled, -int(run.decoding.get("steps") or 0)),
            *(run.pace, circuit_settings(run), run.name),
        )

    return sorted(runs, key=place)


def glance(found: Sequence[Pairing]) -> list[Block]:
    """What the comparisons say, in a line each; of several settings the registered one speaks, or else the first."""
    leading = {}
    for made in found:
        run = made.coupled
        kind = (run.task, made.baseline.path, run.method)
        if kind not in leading or (run.registered and not leading[kind].coupled.registered):
            leading[kind] = made
    lines = []
    for made in leading.values():
        run = made.coupled
        verdict = "more than chance explains" if made.p_value < 0.05 else "within what chance explains"
        lines.append(
            f"{task_name(run.task)}, {family_name(run.family)}, {_pace(run)}: {percent(_alone(made))} % alone, "
            f"**{percent(_together(made))} % with {run.method}** ({circuit_settings(run)}), the same {made.count} "
            f"problems; {verdict} ({p_text(made.p_value)})"
        )
    return [Bullets(lines)] if lines else []


def _alone(made: Pairing) -> float:
    return (made.both + made.only_baseline) / made.count


def _together(made: Pairing) -> float:
    return (made.both + made.only_coupled) / made.count


def p_text(value: float) -> str:
    """A p-value as text."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def all_runs(runs: Sequence[Run]) -> list[Block]:
    """Every run with accuracy, cost and state."""
    header = ("run", "task", "method", "order, pace", "circuit", "solved", "accuracy, %", "95 % interval")
    header += ("tokens / pass", "s / sample", "tokens/s", "state")
    rows = [
        (
            *(run.name, task_name(run.task), f"{family_name(run.family)}, {run.method}"),
            *(f"{run.decoding.get('remasking')}, {run.pace}", circuit_settings(run)),
            *(f"{run.totals['correct']} of {run.totals['count']}", percent(run.accuracy), interval(run)),
            *(f"{run.tokens_per_pass:.2f}", f"{run.seconds_per_sample:.3g}"),
            *(NONE if run.tokens_per_second is None else f"{run.tokens_per_second:,.1f}", run.status),
        )
        for run in runs
    ]
    return [Heading("All runs"), Table(header, rows, left=(0, 1, 2, 3, 4, 11))]


def comparisons(found: Sequence[Pairing], alone: Sequence[Run]) -> list[Block]:
    """CoDD against the same backbone alone, problem by problem."""
    if not found and not alone:
        return []
    note = (
        "Runs that differ by the circuit alone, on the problems that both have finished. McNemar's exact test, "
        "two-sided: how likely so uneven a split of the problems that only one of them solves is, if a fair coin "
        "decided each."
    )
    blocks: list[Block] = [Heading("CoDD against the backbone alone, problem by problem"), Paragraph(note)]
    header = ("task", "backbone, order, pace", "CoDD", "problems", "alone, %", "CoDD, %", "gain", "only CoDD")
    header += ("only alone", "p")
    rows = [
        (
            *(task_name(made.coupled.task), f"{family_name(made.coupled.family)}, {_pace(made.coupled)}"),
            *(f"{made.coupled.method}\n{circuit_settings(made.coupled)}", str(made.count)),
            *(percent(_alone(made)),),
            *(percent(_together(made)), f"{100 * made.gain:+.2f}"),
            *(str(made.only_coupled), str(made.only_baseline), p_text(made.p_value)),
        )
        for made in found
    ]
    blocks += [Table(header, rows, left=(0, 1, 2))] if rows else []
    if alone:
        names = ", ".join(f"`{run.name}`" for run in alone)
        blocks.append(
            Paragraph(f"Without a run of the backbone alone at the same settings, and so not compared: {names}.")
        )
    return blocks


def _pace(run: Run) -> str:
    return f"{run.decoding.get('remasking')}, {run.pace}"


def hardware(run: Run) -> str:
    """The devices of a run, in words."""
    about = (run.summary or {}).get("environment") or {}
    kinds = about.get("devices") or []
    if not kinds:
        return "a machine not recorded"
    return ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))


def to_repeat(runs: Sequence[Run]) -> list[Block]:
    """Versions, task version, configuration, seed and hardware of every run."""
    blocks: list[Block] = [
        Heading("To repeat a run"),
        Paragraph("Settings decide answers and scores; the environment is what they were computed with."),
    ]
    for run in runs:
        summary = run.summary or {}
        kept = ("limit", "batch_size", "mesh", "started", "seconds_this_run", "metrics", "environment")
        told = {"settings": run.settings, **{name: summary.get(name) for name in kept if name in summary}}
        versions = f"lm-eval {run.settings.get('lm_eval')}, task version {run.settings.get('task_version')}"
        head = f"{run.name}: {task_name(run.task)}, seed {run.settings.get('seed')}, {versions}, {hardware(run)}"
        blocks.append(Details(head, json.dumps(told, indent=2, ensure_ascii=False)))
    return blocks
