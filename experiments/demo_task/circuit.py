"""Circuits for the demo's backbone on the demo's problems, in the settings that suit them."""

import argparse
from typing import Any

from codd_jax.tokenizer import load_tokenizer
from codd_jax.training.circuit_job import CircuitJob, read_job, run_job
from codd_jax.training.trainer import TrainedCircuit
from experiments.demo import BUNDLE
from experiments.demo_task.data import WINDOW, demo_examples

# What the demo sets in place of a true model's defaults.
DEFAULTS: dict[str, Any] = {"states": 64, "dtype": "float32", "seconds": 240.0, "held_out": 512}
EXAMPLES = 6144


def demo_job(args: argparse.Namespace, given: dict[str, Any]) -> CircuitJob:
    """The job of the command line's flags, with the demo's defaults for those not `given`."""
    settings = {**vars(args), **DEFAULTS, **given, "llada_ckpt": str(BUNDLE), "window": WINDOW, "windows_per_row": 1}
    if given.get("steps") and "seconds" not in given:
        settings["seconds"] = None
    return read_job(argparse.Namespace(**settings))


def train_demo_circuit(args: argparse.Namespace, given: dict[str, Any]) -> tuple[TrainedCircuit, dict[str, Any]]:
    """Trains as the flags say and saves; as `circuit_job.run_job`."""
    job = demo_job(args, given)
    tokenizer = load_tokenizer(BUNDLE)
    # Held-out problems never appear among those to learn from, whatever the seed.
    examples = demo_examples(tokenizer, EXAMPLES, job.seed + 1, held_out=False)
    return run_job(job, (examples, demo_examples(tokenizer, job.held_out, 0, held_out=True)))
