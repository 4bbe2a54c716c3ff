"""Watch one prompt being denoised, backbone alone beside CoDD, as a web page or in the terminal."""

import argparse
from collections.abc import Sequence

from codd_jax.evaluation.command import execute
from codd_jax.evaluation.flags import Parser, add_model_flags, count, number
from codd_jax.evaluation.presets import TASKS

PRESET = TASKS["gsm8k"]
# The demo's tokens a step, where the circuit helps most.
DEMO_STEPS = 4
DEMO_PROMPT = "There were 6 cards on the table and Tom found 7 more. How many cards does Tom have?"
EXAMPLES = """
examples
  the built-in demo, without a checkpoint; then another question, live in the terminal:
    python -m experiments.view
    python -m experiments.view --terminal \\
        --prompt "Anna has 9 shells and gives 4 to Ben. How many shells does Anna have?"
  a prompt of your own:
    python -m experiments.view --llada_ckpt GSAI-ML/LLaDA-8B-Instruct --pc_ckpt il18/llada-math-pc \\
        --prompt "What is 17 times 6?"
  a sample of a finished run, decoded again with the run's own settings:
    python -m experiments.view --llada_ckpt DIR --results results/0shot_llada_gsm8k --doc 12
  what was recorded before:
    python -m experiments.view --replay view/replay.json --terminal
"""


def make_parser() -> Parser:
    """The command line."""
    name = "python -m experiments.view"
    parser = Parser(prog=name, usage=f"{name} [flags]", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument_group("what to watch").add_argument
    add("--prompt", metavar="TEXT", help="a user's message")
    add("--results", metavar="FOLDER", help="a run's folder: decode one of its samples again, with its settings")
    add("--doc", type=count(0), metavar="N", help="which problem of --results, from 0 (0)")
    add("--replay", metavar="FILE", help="a replay.json from an earlier view; nothing is decoded")
    add = parser.add_argument_group("how to show it").add_argument
    add("--terminal", action="store_true", help="in the terminal as well, while it is decoded")
    add("--delay", type=number, metavar="S", help="seconds a step in the terminal, at least (0.25)")
    add(
        "--output_dir",
        default="view",
        metavar="DIR",
        help="gets replay.html, one file to open or send, and replay.json (%(default)s)",
    )
    add_model_flags(parser, PRESET)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, records or reads, shows, and prints where the page is."""
    parser = make_parser()
    execute(parser, parser.parse_args(argv), _run)


def _run(args: argparse.Namespace) -> None:
    from codd_jax.evaluation import viewing
    from codd_jax.evaluation.viewer import write_replay
    from experiments.demo_task import decode

    bundle = viewing.Bundle(decode.BUNDLE, decode.decode_config("codd", DEMO_STEPS), DEMO_PROMPT)
    delay = 0.25 if args.delay is None else args.delay
    replay = viewing.watch(args, PRESET, bundle, terminal=args.terminal, delay=delay)
    print(write_replay(replay, args.output_dir))


if __name__ == "__main__":
    main()
