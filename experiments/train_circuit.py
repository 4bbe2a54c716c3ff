"""Train a circuit on a frozen diffusion language model (CoDD, section 4.3); without a checkpoint, on the demo's.

The backbone runs once: hidden states of masked windows are stored, and training reads them through the frozen head.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from codd_jax.compilation import enable_compilation_cache
from codd_jax.evaluation.flags import Parser, plain_warnings
from codd_jax.training.circuit_flags import add_data_flags, add_training_flags

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
# What only a backbone of one's own has; the demo takes all other flags.
OWN_FLAGS = {"data", "validation", "held_out", "question_field", "answer_field", "system", "split", "limit"}
OWN_FLAGS |= {"max_length", "dtype", "window"}


def make_parser() -> Parser:
    """The command line."""
    name = "python -m experiments.train_circuit"
    parser = Parser(prog=name, usage=f"{name} [flags]", description=__doc__, epilog=EXAMPLES)
    add_data_flags(parser)
    add_training_flags(parser)
    add = parser.add_argument_group("results").add_argument
    add("--output_dir", type=pathlib.Path, default=pathlib.Path("runs/circuit"), metavar="DIR", help="(%(default)s)")
    add("--to_jpc", action="store_true", help="write the circuit as .jpc, too, for PyJuice")
    add("--true_size", action="store_true", help="train nothing: time a step of the published size")
    return parser


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
        if given.keys() & OWN_FLAGS:
            listed = ", ".join(f"--{name}" for name in sorted(given.keys() & OWN_FLAGS))
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
