"""The embedded demo: `python -m experiments.demo`; `--train` makes its backbone and circuit anew.

The problems, the backbone (about a million weights) and the circuit are this project's own, trained on nothing but
the generator in `experiments.demo_task`: the demo shows what coupling does, not how well a language model reasons.
"""

import argparse
import pathlib
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from tqdm import tqdm

from codd_jax import CoDD
from codd_jax.compilation import enable_compilation_cache
from codd_jax.evaluation.flags import Parser, count
from experiments.demo_task.decode import BUNDLE, COUPLINGS, answer, measure
from experiments.demo_task.problems import Grade, Problem, sample_problems
from experiments.demo_task.report import (
    METHODS,
    example_text,
    markdown_table,
    save_report,
    summary_line,
    verdict,
)

STEPS = (1, 2, 4, 8, 16, 32)


def run_demo(
    output_dir: str | pathlib.Path = "runs/demo",
    problems: int = 200,
    seed: int = 0,
    batch_size: int = 200,
    steps: Sequence[int] = STEPS,
    bundle: str | pathlib.Path = BUNDLE,
    progress: bool = True,
) -> dict[str, Any]:
    """Decode held-out problems with the backbone alone, with CoDD and with any-order sampling; save table and plot.

    Args:
      output_dir: gets table.json, table.md and plot.png.
      problems: how many held-out problems; seed: which ones, and the seed of decoding.
      batch_size: rows decoded together; no answer depends on it.
      steps: denoising steps for the window of 32 tokens.
      bundle: folder with backbone, tokenizer and circuit.
      progress: show a bar.

    Returns:
      What table.json holds: `rows` with method, steps, solved and its 95 % interval, answer_right, coherent,
      tokens_per_forward and seconds; `compile_seconds`, `total_seconds`; `example`, one problem side by side.
    """
    if problems < 1 or not steps:
        raise ValueError(f"{problems} problems at {len(steps)} numbers of steps: there must be at least one of each")
    began = time.perf_counter()
    model = CoDD.from_pretrained(bundle, circuit=bundle, dtype="float32")
    drawn = list(islice(sample_problems(seed, held_out=True), problems))
    rows, answers, compile_seconds = [], {}, 0.0
    with tqdm(total=len(COUPLINGS) * len(steps), desc="decoding", unit="run", disable=not progress) as bar:
        for method in COUPLINGS:
            bar.set_postfix_str(f"{METHODS[method]}: compiling")
            start = time.perf_counter()
            answer(model, drawn[:batch_size], method, 1, seed, batch_size)
            compile_seconds += time.perf_counter() - start
            for number in steps:
                bar.set_postfix_str(f"{METHODS[method]}, {number} steps")
                row, answers[method, number] = measure(model, drawn, method, number, seed, batch_size)
                rows.append(row)
                bar.update()
    result = {
        "problems": problems,
        "seed": seed,
        "steps": list(steps),
        "rows": rows,
        "example": _example(drawn, answers, steps),
        "compile_seconds": round(compile_seconds, 2),
        "total_seconds": round(time.perf_counter() - began, 2),
    }
    save_report(result, pathlib.Path(output_dir))
    return result


def _example(
    problems: list[Problem], answers: dict[tuple[str, int], list[tuple[str, Grade]]], steps: Sequence[int]
) -> dict[str, Any] | None:
    """The first problem that the backbone alone answers in mixed phrasings at the fewest steps, or None."""
    fewest = min(steps)
    mixed = [row for row, (_, result) in enumerate(answers["backbone", fewest]) if not result.coherent]
    if not mixed:
        return None
    first = mixed[0]
    shown = {method: answers[method, fewest][first] for method in COUPLINGS}
    return {
        "question": problems[first].question,
        "steps": fewest,
        "count": len(mixed),
        "answers": {method: {"text": text, "verdict": verdict(result)} for method, (text, result) in shown.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m experiments.demo", description=__doc__)
    parser.add_argument("--problems", type=count(1), default=200, help="held-out problems to decode")
    parser.add_argument("--seed", type=count(0), default=0)
    parser.add_argument("--batch_size", type=count(1), default=200)
    parser.add_argument("--steps", type=count(1), nargs="+", default=STEPS)
    parser.add_argument("--output_dir", type=pathlib.Path, default=pathlib.Path("runs/demo"))
    parser.add_argument(
        "--bundle", type=pathlib.Path, default=BUNDLE, help="backbone, tokenizer and circuit to decode with"
    )
    parser.add_argument(
        "--frontier", action="store_true", help="accuracy against tokens per pass: caches and confidence thresholds"
    )
    parser.add_argument(
        "--cache_refresh", type=count(0), default=4, metavar="N",
        help="with --frontier: passes between refreshes of the dual cache, 0 for none (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--train", action="store_true", help="train backbone and circuit instead of decoding")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("runs/demo_bundle"), help="where --train writes"
    )
    options = parser.parse_args(arguments)
    enable_compilation_cache()
    try:
        _run(options)
    except (ValueError, OSError, FloatingPointError) as error:
        parser.error(str(error))


def _run(options: argparse.Namespace) -> None:
    """Trains, or decodes and prints the table."""
    if options.train:
        from experiments.demo_task.train import Recipe, train_bundle

        train_bundle(options.output, Recipe(seed=options.seed))
        print(
            f"trained bundle: {options.output} (decode with it: python -m experiments.demo --bundle {options.output})"
        )
        return
    if options.frontier:
        from experiments.demo_task.frontier import frontier_table, run_frontier

        refresh = options.cache_refresh or None
        found = run_frontier(options.output_dir, options.problems, options.seed, options.bundle, refresh)
        print(frontier_table(found))
        print(f"table and plot: {options.output_dir}")
        return
    print("Built-in demo: generated word problems, a backbone of a million weights, a circuit of 64 states.")
    result = run_demo(
        options.output_dir, options.problems, options.seed, options.batch_size, options.steps, options.bundle
    )
    print(f"\n{summary_line(result)}\n\n{markdown_table(result)}\n\n{example_text(result)}\n")
    print(f"{result['total_seconds']:.0f} s in all, {result['compile_seconds']:.0f} s of them compilation")
    print(f"table and plot: {options.output_dir}")


if __name__ == "__main__":
    main()
