"""The command line that every benchmark script shares: parse, run or show a prompt, say where the results are."""

import argparse
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence

from codd_jax import distributed
from codd_jax.evaluation.flags import Parser, add_benchmark_flags, plain_warnings
from codd_jax.evaluation.options import Options, read_options
from codd_jax.evaluation.presets import SIDE_BY_SIDE, TaskPreset

# What a user can mend: one message, no traceback.
MENDABLE = (ValueError, OSError, NotImplementedError, FloatingPointError, ImportError, MemoryError)


def make_parser(preset: TaskPreset, description: str, first_examples: str = "") -> Parser:
    """The parser of `python -m experiments.<task>`.

    Args:
      preset: the task.
      description: what the script is for.
      first_examples: lines of the epilog before those that fit every task.
    """
    name = f"python -m experiments.{preset.name}"
    epilog = f"\nexamples\n{first_examples}{_examples(name, preset)}"
    parser = Parser(prog=name, usage=f"{name} [flags]", description=description, epilog=epilog)
    add_benchmark_flags(parser, preset)
    add = parser.add_argument_group("instead of the benchmark").add_argument
    add(
        "--prompt",
        metavar="TEXT",
        help="decode this prompt, backbone alone beside CoDD, and evaluate nothing; defaults are then those of CoDD's "
        "example: 256 tokens in 64 steps, --pc_temperature 0.1, --pc_frac 0.7",
    )
    return parser


def _examples(name: str, preset: TaskPreset) -> str:
    """Command lines to start from, which fit any task."""
    run = f"{name} --run_generated_code" if preset.runs_code else name
    return f"""\
  the paper's setting, then the same with a circuit:
    {run} --llada_ckpt GSAI-ML/LLaDA-8B-Instruct --num_steps 64
    {run} --llada_ckpt GSAI-ML/LLaDA-8B-Instruct --num_steps 64 \\
        --pc_ckpt {preset.circuits["llada"]} --pc_temperature 0.1 --pc_frac 0.7
  a quick look at local problems, without the hub:
    {run} --llada_ckpt DIR --data test.jsonl --limit 20 --gen_length 64
  a prompt of your own, backbone alone beside CoDD:
    {name} --dream_ckpt DIR --pc_ckpt DIR --prompt "What is 17 times 6?"
  tables, plots and comparisons of what has been run:
    python -m experiments.report results
"""


def main(preset: TaskPreset, description: str, argv: Sequence[str] | None = None) -> None:
    """A benchmark script: parses, runs, and prints where the results are."""
    parser = make_parser(preset, description)
    execute(parser, parser.parse_args(argv), lambda args: run(preset, args))


def execute(parser: Parser, args: argparse.Namespace, action: Callable[[argparse.Namespace], None]) -> None:
    """Does what was asked for, with compiled programs kept on disk; what the user can mend becomes one message."""
    from codd_jax.compilation import enable_compilation_cache

    enable_compilation_cache()
    with plain_warnings():
        try:
            action(args)
        except MENDABLE as error:
            parser.error(str(error))


def run(preset: TaskPreset, args: argparse.Namespace) -> None:
    """The benchmark, or the prompt that was given."""
    if args.prompt is not None:
        # Nothing is scored, so nothing is run.
        args.run_generated_code = preset.runs_code
    distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    if args.grid or args.run:
        return run_many(args, preset)
    options = read_options(args, preset)
    if args.prompt is not None:
        show_prompt(options, preset, args.prompt)
    else:
        run_and_report(options, preset)


def run_and_report(options: Options, preset: TaskPreset) -> None:
    """Runs or continues a benchmark and prints its figures."""
    from codd_jax.evaluation.benchmark import run_benchmark

    try:
        folder = run_benchmark(options, preset)
    except KeyboardInterrupt:
        print("\ninterrupted; finished problems are kept, the same command continues", file=sys.stderr)
        sys.exit(130)
    if distributed.is_first():
        print(figures(folder))


def run_many(args: argparse.Namespace, preset: TaskPreset) -> None:
    """Runs or continues a grid and prints a line for each of its runs."""
    from codd_jax.evaluation import grid

    if args.prompt is not None:
        raise ValueError("--prompt decodes one prompt; leave out --grid and --run")
    try:
        folder, failed = grid.run_grid(grid.read_runs(args, preset), preset)
    except KeyboardInterrupt:
        print("\ninterrupted; finished problems are kept, the same command continues", file=sys.stderr)
        sys.exit(130)
    if distributed.is_first():
        print(folder / grid.INDEX)
    if failed:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
        raise ValueError(f"{len(failed)} of the runs failed; the others are finished:\n{listed}")


def figures(folder: pathlib.Path) -> str:
    """Accuracy, cost and place of a finished run, as lines of text."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    low, high = summary["interval_95"]
    return (
        f"accuracy {summary['accuracy']:.2%} ({summary['correct']} of {summary['total']}, 95 % interval {low:.2%} to "
        f"{high:.2%}; {summary['metric']})\n"
        f"{summary['tokens']} tokens in {summary['steps_used']} steps and {summary['generation_seconds']:.1f} s: "
        f"{summary['tokens_per_forward_pass']} tokens per forward pass, {summary['tokens_per_second']} tokens/s\n"
        f"{folder / 'summary.json'}"
    )


def show_prompt(options: Options, preset: TaskPreset, prompt: str) -> None:
    """A user's prompt, backbone alone beside CoDD."""
    from codd_jax.evaluation import benchmark, side_by_side

    if not prompt.strip():
        raise ValueError("--prompt is empty")
    decode = benchmark.inspect(options, **SIDE_BY_SIDE).decode
    columns = side_by_side.compare(
        benchmark.load_model(options, decode), prompt, decode, system=preset.system_prompt, seed=options.seed
    )
    print(side_by_side.render(columns, shutil.get_terminal_size((120, 24)).columns))
    print(side_by_side.write(options.output_dir, prompt, columns, decode, options.seed))
