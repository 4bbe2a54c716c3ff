"""Circuits for the demo's backbone on the demo's problems, in the settings that suit them."""

import argparse
from typing import Any

from codd_jax.tokenizer import load_tokenizer
from codd_jax.training.circuit_job import CircuitJob, read_job, run_job
from codd_jax.training.dataset import Example
from codd_jax.training.trainer import TrainedCircuit
from experiments.demo_task.data import WINDOW, demo_examples
from experiments.demo_task.decode import BUNDLE

# What the demo sets in place of a true model's defaults.
DEFAULTS: dict[str, Any] = {"states": 64, "dtype": "float32", "seconds": 240.0, "held_out": 512}
EXAMPLES = 6144


def demo_job(args: argparse.Namespace, given: dict[str, Any]) -> CircuitJob:
    """The job of the command line's flags, with the demo's defaults for those not `given`."""
    settings = {**vars(args), **DEFAULTS, **given, "llada_ckpt": str(BUNDLE), "window": WINDOW, "windows_per_row": 1}
    if given.get("steps") and "seconds" not in given:
        settings["seconds"] = None
    return read_job(argparse.Namespace(**settings))


def demo_texts(seed: int, held_out: int) -> tuple[list[Example], list[Example]]:
    """Problems to learn from, and `held_out` others, which no seed trains on."""
    tokenizer = load_tokenizer(BUNDLE)
    return (
        demo_examples(tokenizer, EXAMPLES, seed + 1, held_out=False),
        demo_examples(tokenizer, held_out, 0, held_out=True),
    )


def train_demo_circuit(args: argparse.Namespace, given: dict[str, Any]) -> tuple[TrainedCircuit, dict[str, Any]]:
    """Trains as the flags say and saves; as `circuit_job.run_job`."""
    job = demo_job(args, given)
    return run_job(job, demo_texts(job.data_seed, job.held_out))
