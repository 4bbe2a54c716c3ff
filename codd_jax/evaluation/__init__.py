"""Benchmarks: lm-eval asks and scores, the model answers, and a folder of results says how.

lm-eval is imported by the functions that need it, not here.
"""

from codd_jax.evaluation.harness import Evaluation, evaluate
from codd_jax.evaluation.presets import DECODING, TASKS, TaskPreset, decoding_preset
from codd_jax.evaluation.problems import find_problems, load_task
from codd_jax.evaluation.results import ResultsFolder, wilson_interval

__all__ = [
    "DECODING",
    "TASKS",
    "Evaluation",
    "ResultsFolder",
    "TaskPreset",
    "decoding_preset",
    "evaluate",
    "find_problems",
    "load_task",
    "wilson_interval",
]
