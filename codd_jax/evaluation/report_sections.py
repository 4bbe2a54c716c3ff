"""The sections of a report, from runs to blocks: tables in the paper's form, comparisons, ablation, what to repeat."""

import json
from collections.abc import Callable, Iterable, Sequence

from codd_jax.evaluation.comparison import Pairing
from codd_jax.evaluation.paper_tables import ABLATION, ACCURACY, LATENCY, PAPER, AblationKey, AccuracyKey
from codd_jax.evaluation.report_document import Block, Bullets, Details, Heading, Paragraph, Table
from codd_jax.evaluation.results import wilson_interval
from codd_jax.evaluation.runs import Run

FAMILY_NAMES = {"llada": "LLaDA", "dream": "Dream"}
TASK_NAMES = {"math500": "MATH500", "gsm8k": "GSM8K", "gpqa": "GPQA", "mbpp": "MBPP"}
_METHODS = ("backbone alone", "CoDD", "CoDD, any-order")
# The paper's generations; figures of other lengths do not compare.
_PAPER_LENGTH = 512
_NONE = "–"


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
    """τ and pc_frac of a coupled run."""
    if not run.coupled:
        return _NONE
    share = run.decoding.get("pc_frac")
    reversed_ = ", reversed" * bool(run.decoding.get("reverse_frac"))
    shown = "always" if share is None else f"{share:g}"
    return f"τ {run.decoding.get('pc_temperature', 1):g}, pc_frac {shown}{reversed_}"


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


def paper_tables(runs: Sequence[Run]) -> list[Block]:
    """Accuracy in the form of the paper's tables 1 and 2: a table for each backbone and length."""
    plain = [run for run in runs if run.scheduled and run.decoding.get("cache", "none") == "none"]
    blocks: list[Block] = []
    groups = _grouped(
        plain, lambda run: (run.family, str(run.settings.get("backbone")), run.decoding.get("gen_length"))
    )
    for (family, _, length), group in groups.items():
        columns = list(_grouped(group, lambda run: (run.task, run.decoding.get("steps"))))
        rows = []
        for (method, remasking), mates in _grouped(
            group, lambda run: (run.method, run.decoding.get("remasking", "?"))
        ).items():
            cells = []
            for task, steps in columns:
                here = [run for run in mates if (run.task, run.decoding.get("steps")) == (task, steps)]
                key = AccuracyKey(family, method != "backbone alone", remasking, task, steps)
                cells.append(_accuracy_cell(here, ACCURACY.get(key) if length == _PAPER_LENGTH else None))
            rows.append((method, remasking, *cells))
        header = ("", "order", *(f"{task_name(task)}\n{steps} steps" for task, steps in columns))
        source = _source(group[0])
        blocks.append(Heading(f"{family_name(family)}{source}, {length} tokens", 3))
        blocks.append(Table([cell.replace("\n", ", ") for cell in header], rows, left=(0, 1)))
    if not blocks:
        return []
    note = (
        "Per cent of problems solved, with 95 % Wilson intervals; beneath, the paper's figure where it has one "
        f"({PAPER}, tables 1 and 2, {_PAPER_LENGTH} tokens, 8B and 7B models). Where several settings were run, "
        "the one registered beforehand leads, or else the first, and the best follows: choosing the best of several is "
        "optimistic."
    )
    return [Heading("Accuracy, in the form of the paper's tables 1 and 2"), Paragraph(note), *blocks]


def _source(run: Run) -> str:
    source = run.settings.get("backbone")
    name = source.get("source") if isinstance(source, dict) else source
    return f" ({name})" if name else ""


def _accuracy_cell(runs: Sequence[Run], paper: float | None) -> str:
    lines = [_NONE]
    if runs:
        main = next((run for run in runs if run.registered), runs[0])
        best = max(runs, key=lambda run: run.accuracy)
        lines = [percent(main.accuracy), interval(main)]
        if len(runs) > 1:
            lines.append(f"best of {len(runs)}: {percent(best.accuracy)}\n{circuit_settings(best)}")
        if main.status != "complete":
            lines.append(main.status)
    if paper is not None:
        lines.append(f"paper {paper:.2f}")
    return "\n".join(lines)


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
            *(_NONE if run.tokens_per_second is None else f"{run.tokens_per_second:,.1f}", run.status),
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


def ablation(runs: Sequence[Run]) -> list[Block]:
    """pc_frac by τ in the form of the paper's tables 4 and 5, where more than one setting was run."""
    coupled = [run for run in runs if run.coupled and run.scheduled and run.decoding.get("cache", "none") == "none"]
    blocks: list[Block] = []
    kind = _grouped(coupled, lambda run: (run.task, run.family, run.method, run.decoding.get("gen_length")))
    for (task, family, method, length), group in kind.items():
        if len({circuit_settings(run) for run in group}) < 2:
            continue
        shares = sorted({run.decoding.get("pc_frac") for run in group}, key=lambda share: (share is None, share))
        columns = list(_grouped(group, _ablation_column))
        rows = []
        for share in shares:
            cells = []
            for column in columns:
                here = [r for r in group if r.decoding.get("pc_frac") == share and _ablation_column(r) == column]
                lines = [percent(here[0].accuracy), interval(here[0])] if here else [_NONE]
                key = AblationKey(family, task, *column, share)
                if length == _PAPER_LENGTH and key in ABLATION:
                    lines.append(f"paper {ABLATION[key]:.2f}")
                cells.append("\n".join(lines))
            rows.append(("always" if share is None else f"{share:g}", *cells))
        header = ("pc_frac", *(f"{steps} steps, {order}, τ {tau:g}" for steps, order, tau in columns))
        blocks += [Heading(f"{task_name(task)}, {family_name(family)}, {method}", 3), Table(header, rows)]
    if not blocks:
        return []
    note = "Accuracy in per cent by the share of masks below which the circuit is used, and by its temperature τ."
    return [Heading("Ablation, in the form of the paper's tables 4 and 5"), Paragraph(note), *blocks]


def _ablation_column(run: Run) -> tuple[int, str, float]:
    return run.decoding.get("steps"), run.decoding.get("remasking"), run.decoding.get("pc_temperature")


def latency(runs: Sequence[Run]) -> list[Block]:
    """Seconds a sample in the form of the paper's table 3."""
    plain = [run for run in runs if run.scheduled and run.decoding.get("cache", "none") == "none"]
    groups = _grouped(plain, lambda run: (run.family, _source(run), run.decoding.get("gen_length"), hardware(run)))
    blocks: list[Block] = []
    for (family, source, length, machine), group in groups.items():
        columns = list(_grouped(group, lambda run: (run.task, run.decoding.get("steps"))))
        rows = []
        for method, mates in _grouped(group, lambda run: run.method).items():
            cells = []
            for column in columns:
                here = [run for run in mates if (run.task, run.decoding.get("steps")) == column]
                mean = sum(run.seconds_per_sample for run in here) / len(here) if here else None
                lines = [_NONE if mean is None else f"{mean:.3g}"]
                name = {"backbone alone": "backbone", "CoDD": "latent"}.get(method, "any_order")
                if length == _PAPER_LENGTH and (paper := LATENCY.get((family, name, *column))) is not None:
                    lines.append(f"paper {paper:.2f}")
                cells.append("\n".join(lines))
            rows.append((method, *cells))
        blocks.append(Heading(f"{family_name(family)}{source}, {length} tokens, on {machine}", 3))
        blocks.append(Table(("", *(f"{task_name(task)}, {steps} steps" for task, steps in columns)), rows))
    if not blocks:
        return []
    note = (
        "Seconds of all devices together per sample within a batch; compilation that fell into a run counts. The "
        "paper's table 3 does not name its machine; `experiments/latency.py` measures latency by itself."
    )
    return [Heading("Latency, in the form of the paper's table 3"), Paragraph(note), *blocks]


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


def _grouped(runs: Iterable[Run], kind: Callable[[Run], object]) -> dict:
    """Runs by kind, in the order of first appearance."""
    groups: dict = {}
    for run in runs:
        groups.setdefault(kind(run), []).append(run)
    return groups
