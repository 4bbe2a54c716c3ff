"""How the demo decodes and grades one cell of its tables."""

import pathlib
import time
from typing import Any

from codd_jax import CoDD, DecodeConfig
from codd_jax.evaluation import wilson_interval
from codd_jax.generation import Generation
from experiments.demo_task.data import WINDOW
from experiments.demo_task.problems import Grade, Problem, grade

BUNDLE = pathlib.Path(__file__).parent / "bundle"
COUPLINGS = {"backbone": "none", "codd": "latent", "any_order": "any_order"}


def decode_config(method: str, steps: int, **changes: Any) -> DecodeConfig:
    """How the demo decodes: greedy, the whole window as one block; the circuit, where used, always and with τ = 1.

    changes: further fields of `DecodeConfig`.
    """
    if method not in COUPLINGS:
        raise ValueError(f"method is {method!r}; known are {', '.join(COUPLINGS)}")
    return DecodeConfig(
        steps=steps,
        gen_length=WINDOW,
        block_length=WINDOW,
        coupling=COUPLINGS[method],
        pc_temperature=1.0,
        pc_frac=None,
        **changes,
    )


def answer(
    model: CoDD, problems: list[Problem], method: str, steps: int, seed: int, batch_size: int, **changes: Any
) -> Generation:
    """The problems' questions as chat messages, answered by one method; changes as in `decode_config`."""
    questions = [problem.question for problem in problems]
    return model.generate(questions, decode_config(method, steps, **changes), seed=seed, batch_size=batch_size)


def measure(
    model: CoDD, problems: list[Problem], method: str, steps: int, seed: int, batch_size: int, **changes: Any
) -> tuple[dict[str, Any], list[tuple[str, Grade]]]:
    """One cell of the table, and every problem's text with its grade; changes as in `decode_config`."""
    start = time.perf_counter()
    generation = answer(model, problems, method, steps, seed, batch_size, **changes)
    seconds = time.perf_counter() - start
    graded = [(text.strip(), grade(problem, text)) for problem, text in zip(problems, generation.text, strict=True)]
    grades = [result for _, result in graded]
    solved = sum(result.solved for result in grades)
    low, high = wilson_interval(solved, len(problems))
    row = {
        "method": method,
        "steps": steps,
        "solved": solved / len(problems),
        "solved_low": low,
        "solved_high": high,
        "answer_right": sum(result.answer_right for result in grades) / len(problems),
        "coherent": sum(result.coherent for result in grades) / len(problems),
        "tokens_per_forward": generation.tokens_per_forward,
        "seconds": round(seconds, 2),
    }
    return row, graded
