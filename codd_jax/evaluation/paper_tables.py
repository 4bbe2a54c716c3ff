"""The figures of the paper (arXiv 2603.00045), to stand beside ours: accuracy, latency and ablation.

Numbers only; the settings behind the best cells of tables 1 and 2 are not given in the paper.
"""

from collections.abc import Mapping
from typing import NamedTuple

PAPER = "arXiv:2603.00045"
STEPS = (256, 128, 64)
_TASKS = ("math500", "gsm8k", "gpqa", "mbpp")

# Accuracy in %: (backbone, coupled, remasking) → tasks in the order of _TASKS, at 256, 128 and 64 steps each.
# Tables 1 (LLaDA, block diffusion) and 2 (Dream, full diffusion).
_ACCURACY = """
llada backbone random          28.40 19.20  7.40  58.83 41.32 14.86  22.10 19.20 10.71  18.00  6.20  2.20
llada backbone low_confidence  36.00 31.60 12.60  71.34 64.22 32.37  21.43 17.86  8.04  34.80 17.00  5.40
llada backbone margin          39.00 34.40 14.60  71.65 66.41 40.41  22.10 17.19  8.93  35.20 21.60  7.80
llada codd     random          30.40 20.80  8.80  58.23 42.08 15.31  26.34 21.65 11.38  19.40  9.40  4.00
llada codd     low_confidence  41.00 33.80 15.80  72.63 65.88 34.65  24.55 17.86  9.15  34.00 23.80  7.20
llada codd     margin          39.20 38.80 18.40  72.48 66.72 40.41  25.89 18.53 10.94  35.60 22.80  8.80
dream backbone random          16.20 17.00 16.20  38.36 39.50 36.01  27.90 24.78 25.00  29.80 32.20 29.40
dream backbone margin          32.20 21.80 10.80  70.43 56.10 35.70  24.33 14.06  8.04  45.60 32.20 23.60
dream backbone low_confidence  21.80 18.40 12.60  38.36 46.85 40.11  27.01 27.68 26.12  42.00 35.60 26.60
dream backbone entropy         32.20 21.80 10.80  71.34 56.18 33.97  24.33 14.06  8.04  47.20 36.20 24.20
dream codd     entropy         36.80 25.80 18.20  74.75 67.02 56.41  27.90 18.08 10.94  47.40 36.60 27.80
"""
# Table 6, further results on Dream: the same columns.
_FURTHER = """
dream backbone random          22.20 10.00  2.40  47.69 33.97 14.10  23.21 11.83  8.26  27.80 16.80  5.20
dream backbone margin          37.20 19.40  2.00  74.98 58.53 24.26  23.66 13.17  5.13  44.40 29.20 18.00
dream backbone low_confidence  45.00 19.60  3.60  75.44 59.51 21.99  25.22 11.83  4.46  44.40 26.20 16.00
dream backbone entropy         38.40 20.20  2.40  75.06 56.86 24.03  20.76 12.05  5.13  44.60 29.00 18.00
dream codd     random          24.80 10.00  2.40  48.90 34.27 31.70  24.11 12.72  8.48  28.00 17.40  5.00
dream codd     entropy         44.40 21.80  3.40  75.20 57.16 24.94  25.89 13.39  4.91  47.20 31.60 20.20
"""
# Table 3: seconds a sample, (backbone, method) → MATH500 and GPQA at 64, 128 and 256 steps; "-" where not given.
_LATENCY = """
llada backbone   2.86 5.49 11.51  3.11 6.21 12.44
llada latent     3.04 6.18 12.11  3.19 6.61 13.03
llada any_order  3.63 6.67 12.16  -    -    -
dream backbone   2.89 5.86 11.73  3.14 6.36 12.76
dream latent     3.00 6.11 12.35  3.29 6.68 13.33
"""
# Tables 4 and 5: (backbone, task, the two orders of unmasking, pc_frac) → the first order at τ 0.1 and 0.2, the second
# at τ 0.1 and 0.2, for 256, 128 and 64 steps. The paper names neither task; the best cells tell: table 4's are LLaDA's
# on GPQA in table 1. Table 5's, headed "Low Conf" and LLaDA like table 4's, are Dream's on MBPP in table 6, by random
# order and by entropy.
_ABLATION = """
llada gpqa random,low_confidence 0.3  24.33 21.65 19.42 21.43  21.65 17.41     -     -  10.04 10.49  9.15  8.93
llada gpqa random,low_confidence 0.5  24.55 24.33 23.66 24.55  19.20 18.75 16.52 16.52  10.04 10.49  9.15  8.93
llada gpqa random,low_confidence 0.6  19.64 26.34 24.11 22.77  19.42 17.41 17.63 16.07  11.16 11.38  8.93  8.48
llada gpqa random,low_confidence 0.7  21.88 22.10     -     -  18.97 19.64 16.74 15.40  11.16 11.38  8.93  8.48
llada gpqa random,low_confidence 0.8      -     -     -     -      -     - 17.86 15.18      -     -     -     -
dream mbpp random,entropy 0.3  27.80 28.00 46.80 47.20  16.60 16.40 30.40 30.60   5.00  4.80 20.20 19.60
dream mbpp random,entropy 0.5  27.40 27.00 46.80 47.20  17.20 16.80 30.60 31.00   5.00  4.80 20.20 19.60
dream mbpp random,entropy 0.7  28.00 27.40 46.00 45.00  17.40 16.00 29.60 31.60   5.00  4.80 19.40 20.20
"""


class AccuracyKey(NamedTuple):
    """A cell of tables 1, 2 and 6."""

    family: str
    coupled: bool
    remasking: str
    task: str
    steps: int


class AblationKey(NamedTuple):
    """A cell of tables 4 and 5."""

    family: str
    task: str
    steps: int
    remasking: str
    pc_temperature: float
    pc_frac: float


def _rows(table: str, names: int) -> list[tuple[list[str], list[float | None]]]:
    """The lines of a table: `names` words, then numbers."""
    rows = []
    for line in table.split("\n"):
        if words := line.split():
            rows.append((words[:names], [None if word == "-" else float(word) for word in words[names:]]))
    return rows


def _accuracy(table: str) -> dict[AccuracyKey, float]:
    cells = {}
    for (family, method, remasking), values in _rows(table, 3):
        columns = [(task, steps) for task in _TASKS for steps in STEPS]
        for (task, steps), value in zip(columns, values, strict=True):
            cells[AccuracyKey(family, method == "codd", remasking, task, steps)] = value
    return cells


def _latency() -> dict[tuple[str, str, str, int], float]:
    cells = {}
    for (family, method), values in _rows(_LATENCY, 2):
        columns = [(task, steps) for task in ("math500", "gpqa") for steps in reversed(STEPS)]
        for (task, steps), value in zip(columns, values, strict=True):
            if value is not None:
                cells[family, method, task, steps] = value
    return cells


def _ablation() -> dict[AblationKey, float]:
    cells = {}
    for (family, task, orders, share), values in _rows(_ABLATION, 4):
        columns = [(steps, alg, tau) for steps in STEPS for alg in orders.split(",") for tau in (0.1, 0.2)]
        for (steps, alg, tau), value in zip(columns, values, strict=True):
            if value is not None:
                cells[AblationKey(family, task, steps, alg, tau, float(share))] = value
    return cells


ACCURACY: Mapping[AccuracyKey, float] = _accuracy(_ACCURACY)
FURTHER_DREAM: Mapping[AccuracyKey, float] = _accuracy(_FURTHER)
# (family, "backbone" | "latent" | "any_order", task, steps) → seconds a sample, on the authors' machine.
LATENCY: Mapping[tuple[str, str, str, int], float] = _latency()
ABLATION: Mapping[AblationKey, float] = _ablation()
