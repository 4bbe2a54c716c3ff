"""GSM8K with a diffusion language model, alone or coupled by a circuit (CoDD); without a checkpoint, the demo."""

import argparse
from collections.abc import Sequence

from codd_jax.evaluation import command
from codd_jax.evaluation.flags import Parser, count
from codd_jax.evaluation.presets import TASKS

PRESET = TASKS["gsm8k"]
EXAMPLES = """\
  the demo, which needs no checkpoint and no network (some minutes on two cores):
    python -m experiments.gsm8k
"""
# The flags that mean something to the demo; the others steer a model.
DEMO_FLAGS = {"problems", "seed", "output_dir"}


def make_parser() -> Parser:
    """The command line: what all benchmarks share, and the demo's."""
    parser = command.make_parser(PRESET, __doc__, EXAMPLES)
    add = parser.add_argument_group("without a model").add_argument
    add("--problems", type=count(1), metavar="N", help="held-out problems of the demo (200)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, runs, and prints where the results are."""
    parser = make_parser()
    command.execute(parser, parser.parse_args(argv), lambda args: _run(parser, args))


def _run(parser: Parser, args: argparse.Namespace) -> None:
    """The demo, a prompt or the benchmark."""
    if args.llada_ckpt or args.dream_ckpt or args.model_alias:
        if args.problems is not None:
            raise ValueError("--problems counts the demo's problems, which run without a model; use --limit")
        return command.run(PRESET, args)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if given - DEMO_FLAGS:
        listed = ", ".join(f"--{name}" for name in sorted(given - DEMO_FLAGS))
        raise ValueError(f"{listed} without a model; give --llada_ckpt or --dream_ckpt, or no flag for the demo")
    # Flags that were not given keep the demo's own defaults.
    from experiments import demo

    demo.main([word for name in sorted(given) for word in (f"--{name}", str(getattr(args, name)))])


if __name__ == "__main__":
    main()
