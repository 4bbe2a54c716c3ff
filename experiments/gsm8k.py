"""GSM8K with a diffusion language model, alone or coupled by a circuit (CoDD); without a checkpoint, the demo."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence

from codd_jax.compilation import enable_compilation_cache
from codd_jax.evaluation.flags import Parser, add_benchmark_flags, count, plain_warnings
from codd_jax.evaluation.options import Options, read_options
from codd_jax.evaluation.presets import SIDE_BY_SIDE, TASKS

PRESET = TASKS["gsm8k"]
EXAMPLES = """
examples
  the demo, which needs no checkpoint and no network (some minutes on two cores):
    python -m experiments.gsm8k
  the paper's setting, then the same with a circuit:
    python -m experiments.gsm8k --llada_ckpt GSAI-ML/LLaDA-8B-Instruct --num_steps 64
    python -m experiments.gsm8k --llada_ckpt GSAI-ML/LLaDA-8B-Instruct --num_steps 64 \\
        --pc_ckpt il18/llada-gsm-pc --pc_temperature 0.1 --pc_frac 0.7
  a quick look at local problems, without the hub:
    python -m experiments.gsm8k --llada_ckpt DIR --data test.jsonl --limit 20 --gen_length 64
  a prompt of your own, backbone alone beside CoDD:
    python -m experiments.gsm8k --dream_ckpt DIR --pc_ckpt DIR --prompt "What is 17 times 6?"
"""
# The flags that mean something to the demo; the others steer a model.
DEMO_FLAGS = {"problems", "seed", "output_dir"}


def make_parser() -> Parser:
    """The command line: the shared flags, and what is particular to this script."""
    name = "python -m experiments.gsm8k"
    parser = Parser(prog=name, usage=f"{name} [flags]", description=__doc__, epilog=EXAMPLES)
    add_benchmark_flags(parser, PRESET)
    add = parser.add_argument_group("instead of the benchmark").add_argument
    add(
        "--prompt",
        metavar="TEXT",
        help="decode this prompt, backbone alone beside CoDD, and evaluate nothing; defaults are then those of CoDD's "
        "example: 256 tokens in 64 steps, --pc_temperature 0.1, --pc_frac 0.7",
    )
    add("--problems", type=count(1), metavar="N", help="without a model: held-out problems of the demo (200)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, runs, and prints where the results are."""
    parser = make_parser()
    args = parser.parse_args(argv)
    enable_compilation_cache()
    with plain_warnings():
        _run(parser, args)


def _run(parser: Parser, args: argparse.Namespace) -> None:
    """The demo, a prompt or the benchmark; what the user can mend becomes one message."""
    try:
        if not (args.llada_ckpt or args.dream_ckpt or args.model_alias):
            given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
            if given - DEMO_FLAGS:
                listed = ", ".join(f"--{name}" for name in sorted(given - DEMO_FLAGS))
                raise ValueError(
                    f"{listed} without a model; give --llada_ckpt or --dream_ckpt, or no flag for the demo"
                )
            # Flags that were not given keep the demo's own defaults.
            return run_demo([word for name in sorted(given) for word in (f"--{name}", str(getattr(args, name)))])
        if args.problems is not None:
            raise ValueError("--problems counts the demo's problems, which run without a model; use --limit")
        options = read_options(args, PRESET)
        if args.prompt is not None:
            show_prompt(options, args.prompt)
        else:
            run_gsm8k(options)
    except (ValueError, OSError, NotImplementedError, FloatingPointError) as error:
        parser.error(str(error))


def run_demo(argv: Sequence[str]) -> None:
    """The embedded demo, which says of itself what it is."""
    from experiments import demo

    demo.main(argv)


def run_gsm8k(options: Options) -> None:
    """The benchmark."""
    from codd_jax.evaluation.benchmark import run_benchmark

    try:
        folder = run_benchmark(options, PRESET)
    except KeyboardInterrupt:
        print("\ninterrupted; finished problems are kept, the same command continues", file=sys.stderr)
        sys.exit(130)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    low, high = summary["interval_95"]
    print(
        f"accuracy {summary['accuracy']:.2%} ({summary['correct']} of {summary['total']}, 95 % interval {low:.2%} to "
        f"{high:.2%}; {summary['metric']})\n"
        f"{summary['tokens']} tokens in {summary['steps_used']} steps and {summary['generation_seconds']:.1f} s: "
        f"{summary['tokens_per_forward_pass']} tokens per forward pass, {summary['tokens_per_second']} tokens/s\n"
        f"{folder / 'summary.json'}"
    )


def show_prompt(options: Options, prompt: str) -> None:
    """A user's prompt, backbone alone beside CoDD."""
    from codd_jax.evaluation import benchmark, side_by_side

    if not prompt.strip():
        raise ValueError("--prompt is empty")
    decode = benchmark.inspect(options, **SIDE_BY_SIDE).decode
    columns = side_by_side.compare(
        benchmark.load_model(options, decode), prompt, decode, system=PRESET.system_prompt, seed=options.seed
    )
    print(side_by_side.render(columns, shutil.get_terminal_size((120, 24)).columns))
    print(side_by_side.write(options.output_dir, prompt, columns, decode, options.seed))


if __name__ == "__main__":
    main()
