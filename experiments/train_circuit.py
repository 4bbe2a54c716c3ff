"""Train a circuit on a frozen diffusion language model (CoDD, section 4.3); without a checkpoint, on the demo's.

The backbone runs once: hidden states of masked windows are stored, and training reads them through the frozen head.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from codd_jax.compilation import enable_compilation_cache
from codd_jax.evaluation.flags import Parser, count, number, plain_warnings

EXAMPLES = """
examples
  the demo's backbone and problems, no checkpoint needed (3 minutes on two cores):
    python -m experiments.train_circuit
  a circuit for LLaDA on GSM8K, in the size of the published one:
    python -m experiments.train_circuit --llada_ckpt GSAI-ML/LLaDA-8B-Instruct --data openai/gsm8k:main \\
        --states 1024 --batch_size 256 --chunk 16 --steps 2000 --output_dir runs/gsm-pc --to_jpc
  heads that make it follow the context, on top of it, from the states that are stored already:
    python -m experiments.train_circuit --llada_ckpt GSAI-ML/LLaDA-8B-Instruct --data openai/gsm8k:main \\
        --init runs/gsm-pc/circuit --modulation latent,noise --rate 0.02 --store runs/gsm-pc/states \\
        --output_dir runs/gsm-modulated
  decode with it:
    python -m experiments.gsm8k --llada_ckpt GSAI-ML/LLaDA-8B-Instruct --pc_ckpt runs/gsm-pc/circuit
  how fast a step of the published size is on this machine (20 GB of memory at 8 windows on a CPU):
    python -m experiments.train_circuit --true_size --batch_size 4 --chunk 1
the same command again continues a run that was stopped

what comes out (--output_dir)
  circuit/         for --pc_ckpt of every script, and codd_jax.io.circuit.load_circuit
  circuit.jpc      with --to_jpc, for PyJuice and for CoDD's own code
  history.json, history.png
  states/          hidden states, unless --store puts them elsewhere; checkpoints/
rules: adam (or adamax, lion, rmsprop, momentum, sgd) on logits; em and anemone, for log p(x); dual_ratio (with
  --normalization local) and ebw, for the conditional log-likelihood by counts. docs/optimisers.md compares them.
"""
DEMO_FLAGS = {
    "rule",
    "rate",
    "momentum",
    "schedule",
    "steps",
    "seconds",
    "weighting",
    "normalization",
    "validate_every",
}
DEMO_FLAGS |= {"patience", "states", "init", "modulation", "modulation_rate", "masks", "masking", "on_the_fly", "store"}
DEMO_FLAGS |= {"batch_size", "mesh", "seed", "output_dir", "to_jpc", "chunk", "potentials_dtype", "windows_per_row"}


def make_parser() -> Parser:
    """The command line."""
    name = "python -m experiments.train_circuit"
    parser = Parser(prog=name, usage=f"{name} [flags]", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument_group("backbone and data").add_argument
    add("--llada_ckpt", metavar="CKPT", help="LLaDA: a hub id, a HuggingFace folder, or a folder made by `convert`")
    add("--dream_ckpt", metavar="CKPT", help="the same for Dream; give one of the two, or none for the demo")
    add("--data", metavar="DATA", help="a JSONL file or a hub data set (openai/gsm8k:main) of questions and answers")
    add("--validation", metavar="DATA", help="the same, held out; else a random part of --data")
    add("--held_out", type=count(0), default=256, metavar="N", help="examples to validate on (%(default)s)")
    add("--question_field", default="question", metavar="NAME", help="of a record (%(default)s)")
    add("--answer_field", default="answer", metavar="NAME", help="(%(default)s); records with `messages` are chats")
    add("--system", metavar="TEXT", help="a system message before every question")
    add("--split", default="train", help="of a hub data set or a folder (%(default)s)")
    add("--limit", type=count(1), metavar="N", help="the first N examples only")
    add("--max_length", type=count(1), default=1024, metavar="L", help="longer rows are left out (%(default)s)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the backbone (%(default)s)")
    add = parser.add_argument_group("windows and hidden states").add_argument
    add("--window", type=count(1), default=32, metavar="T", help="tokens of a window (%(default)s)")
    add("--masking", choices=("uniform", "blockwise"), default="uniform", help="every solution token with probability "
        "t, or as block-wise decoding meets them (%(default)s)")  # fmt: skip
    add("--masks", type=count(1), default=4, metavar="N", help="maskings of every example (%(default)s)")
    add("--store", type=pathlib.Path, metavar="DIR", help="of the hidden states (states in --output_dir)")
    add("--on_the_fly", action="store_true", help="store nothing: run the backbone at every step")
    add("--windows_per_row", type=count(1), default=4, metavar="N", help="with --on_the_fly, of a row (%(default)s)")
    _add_training_flags(parser)
    add = parser.add_argument_group("results").add_argument
    add("--output_dir", type=pathlib.Path, default=pathlib.Path("runs/circuit"), metavar="DIR", help="(%(default)s)")
    add("--to_jpc", action="store_true", help="write the circuit as .jpc, too, for PyJuice")
    add("--true_size", action="store_true", help="train nothing: time a step of the published size")
    return parser


def _add_training_flags(parser: Parser) -> None:
    add = parser.add_argument_group("circuit and training").add_argument
    add("--states", type=count(1), default=1024, metavar="H", help="latent states (1024; the demo: 64)")
    add("--init", default="data", metavar="HOW", help="data: token statistics; uniform: near the backbone itself; or a "
        "circuit to start from (%(default)s)")  # fmt: skip
    add("--modulation", metavar="KINDS", help="heads that follow the context: latent, transition, emission, and noise "
        "to tell them how much is masked; best on a trained circuit (--init DIR)")  # fmt: skip
    add("--rule", default="adam", help="see below (%(default)s)")
    add("--rate", type=number, help="learning rate or step size (the rule's own)")
    add("--modulation_rate", type=number, default=0.003, help="of the heads (%(default)s)")
    add("--momentum", type=number, help="of expected counts (the rule's own)")
    add("--schedule", choices=("cosine", "linear", "constant"), default="cosine", help="of the rates (%(default)s)")
    add("--steps", type=count(1), metavar="N", help="(2000, without --seconds)")
    add("--seconds", type=number, help="processor seconds of this process in place of steps; the demo: 240")
    add("--batch_size", type=count(1), default=64, metavar="B", help="windows of a step (%(default)s)")
    add("--chunk", type=count(1), metavar="N", help="windows that a device works on at a time, to save memory (all)")
    add("--weighting", choices=("uniform", "1/sqrt(t)", "1/t"), default="uniform", help="of windows by their "
        "masked share t (%(default)s)")  # fmt: skip
    add("--normalization", choices=("global", "local"), default="global", help="of the objective (%(default)s)")
    add("--potentials_dtype", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    add("--validate_every", type=count(0), default=100, metavar="N", help="steps; 0: at the end only (%(default)s)")
    add("--patience", type=count(1), metavar="N", help="stop after N validations without a better one, keep the best")
    add("--mesh", metavar="SPEC", help='devices, as "data:8": every batch is split over all of them')
    add("--seed", type=count(0), default=0, metavar="N", help="(%(default)s)")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, trains, and prints where the circuit is."""
    parser = make_parser()
    args = parser.parse_args(argv)
    enable_compilation_cache()
    with plain_warnings():
        try:
            print(time_step(args) if args.true_size else train(parser, args))
        except (ValueError, OSError, NotImplementedError, FloatingPointError) as error:
            parser.error(str(error))
        except KeyboardInterrupt:
            print("\ninterrupted; what was finished is kept, the same command continues", file=sys.stderr)
            sys.exit(130)


def train(parser: Parser, args: argparse.Namespace) -> str:
    """Trains, and says how it went."""
    from codd_jax.training.circuit_job import read_job, run_job

    if args.llada_ckpt or args.dream_ckpt:
        if args.steps is None and args.seconds is None:
            args.steps = 2000
        trained, paths = run_job(read_job(args))
    else:
        from experiments.demo_task.circuit import train_demo_circuit

        given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
        if given.keys() - DEMO_FLAGS:
            listed = ", ".join(f"--{name}" for name in sorted(given.keys() - DEMO_FLAGS))
            raise ValueError(f"{listed} without a backbone; give --llada_ckpt or --dream_ckpt, or leave them out")
        trained, paths = train_demo_circuit(args, given)
    lines = [
        f"{record['step']} steps, {trained.history['processor_seconds']:.0f} processor seconds; held-out nats per "
        f"masked token: backbone {record['backbone']:.4f}, coupled {record['coupled']:.4f}"
        for record in trained.history["validation"][-1:]
    ]
    return "\n".join([*lines, *(f"{name}: {path}" for name, path in paths.items())])


def time_step(args: argparse.Namespace) -> str:
    """Times a step of the published size, and writes throughput.json."""
    from codd_jax.training.throughput import measure_throughput, render_throughput

    result = measure_throughput(
        states=args.states, length=args.window, batch_size=args.batch_size, chunk=args.chunk, rule=args.rule,
        potentials_dtype=args.potentials_dtype, head_dtype=args.dtype,
    )  # fmt: skip
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "throughput.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return f"{render_throughput(result)}\n{path}"


if __name__ == "__main__":
    main()
