"""CoDD against the same backbone alone, problem by problem: which runs may be compared, and McNemar's exact test."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from codd_jax.evaluation.runs import CIRCUIT_FIELDS, Run

# Beside the decoding's own fields, what must agree for answers to differ by the circuit alone.
_OTHER_SETTINGS = ("circuit", "decoding")


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Two runs over the same problems.

    Attributes:
      baseline, coupled: the runs.
      both, only_baseline, only_coupled, neither: problems solved by whom.
      p_value: two-sided, of McNemar's exact test.
      left_out: problems that only one of the runs has finished, or that were asked differently.
    """

    baseline: Run
    coupled: Run
    both: int
    only_baseline: int
    only_coupled: int
    neither: int
    p_value: float
    left_out: int

    @property
    def count(self) -> int:
        """Problems compared."""
        return self.both + self.only_baseline + self.only_coupled + self.neither

    @property
    def gain(self) -> float:
        """How much more of them the coupled run solves, as a share."""
        return (self.only_coupled - self.only_baseline) / self.count


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test (Psychometrika 12, 1947): a fair coin decides each discordant pair.

    Args:
      only_first, only_second: pairs in which only one of the two is right.

    Raises:
      ValueError: a negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"{only_first} and {only_second} are no counts")
    pairs, fewer = only_first + only_second, min(only_first, only_second)
    # Whole numbers throughout: a thousand coins underflow a float.
    tail = sum(math.comb(pairs, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**pairs)


def pair(baseline: Run, coupled: Run) -> Pairing | None:
    """The two runs problem by problem; None where they share none."""
    common = [
        key
        for key in baseline.samples.keys() & coupled.samples.keys()
        if baseline.samples[key].get("prompt_digest") == coupled.samples[key].get("prompt_digest")
    ]
    if not common:
        return None
    outcomes = [(bool(baseline.samples[key]["correct"]), bool(coupled.samples[key]["correct"])) for key in common]
    only_baseline, only_coupled = outcomes.count((True, False)), outcomes.count((False, True))
    return Pairing(
        baseline=baseline,
        coupled=coupled,
        both=outcomes.count((True, True)),
        only_baseline=only_baseline,
        only_coupled=only_coupled,
        neither=outcomes.count((False, False)),
        p_value=mcnemar_exact(only_baseline, only_coupled),
        left_out=len(baseline.samples.keys() | coupled.samples.keys()) - len(common),
    )


def pairings(runs: Sequence[Run]) -> tuple[list[Pairing], list[Run]]:
    """Every coupled run with the run of the backbone alone that has the same other settings, and those without one."""
    baselines: dict[str, list[Run]] = {}
    for run in runs:
        if not run.coupled:
            baselines.setdefault(_signature(run), []).append(run)
    found, alone = [], []
    for run in runs:
        if not run.coupled:
            continue
        candidates = [made for other in baselines.get(_signature(run), ()) if (made := pair(other, run))]
        if candidates:
            found.append(max(candidates, key=lambda made: made.count))
        else:
            alone.append(run)
    return found, alone


def _signature(run: Run) -> str:
    """All settings that the circuit has no part in, as text."""
    decoding = {name: value for name, value in run.decoding.items() if name not in CIRCUIT_FIELDS}
    others: Mapping[str, Any] = {name: value for name, value in run.settings.items() if name not in _OTHER_SETTINGS}
    return json.dumps([decoding, others], sort_keys=True)
