"""How fast is a denoising step, and how far from the hardware's limit: the paper's Table 3 for any backbone.

Every figure is a median of interleaved runs in this one process; ratios and shares of the floor are formed within the
run, against the rates that this machine reaches for a matrix product and for copying memory, measured beside them.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from codd_jax import HMM, CoDD, Transformer
from codd_jax.backbones import PRESETS
from codd_jax.compilation import enable_compilation_cache
from codd_jax.evaluation.circuit_latency import CircuitWork, circuit_table, measure_circuit
from codd_jax.evaluation.flags import Parser, count, number, plain_warnings
from codd_jax.evaluation.latency import METHODS, Workload, measure
from codd_jax.evaluation.latency_report import plot, table
from codd_jax.evaluation.peer import PytorchPeer

WORKER = pathlib.Path(__file__).with_name("pytorch_peer.py")
EXAMPLES = """
examples
  a small backbone on this machine, backbone alone, CoDD and any-order sampling:
    python -m experiments.latency --preset llada-27m --dtype float32 --prompt_length 64 --gen_length 128 --steps 32
  LLaDA-8B with random weights, as in the paper (one GPU with 80 GB):
    python -m experiments.latency --preset llada-8b --steps 64 128 256 --batch 1 8
  with caches and thresholds, and against the public PyTorch loop (a checkout of it, and torch installed):
    python -m experiments.latency --preset llada-27m --dtype float32 --cache none dual --threshold 0.9
    python -m experiments.latency --preset llada-27m --dtype float32 --against-pytorch ../CoDD --methods backbone
  the circuit alone at the size of the published ones, batch 1 and 8:
    python -m experiments.latency --circuit --batch 1 8
"""


def make_parser() -> Parser:
    """The command line."""
    name = "python -m experiments.latency"
    parser = Parser(prog=name, usage=f"{name} [flags]", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--preset", default="llada-27m", choices=sorted(PRESETS), help="backbone shape, random weights (%(default)s)")
    add("--ckpt", metavar="CKPT", help="a checkpoint in place of a preset")
    add("--peft_ckpt", metavar="DIR", help="a LoRA adapter merged into --ckpt (the paper's RL row)")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="weights and activations (%(default)s)")
    add("--layout", default="auto", choices=("auto", "stacked", "unrolled"), help="of the blocks (%(default)s)")
    add("--states", type=count(1), default=1024, metavar="H", help="states of the random circuit (%(default)s)")
    add("--prompt_length", type=count(1), default=256, metavar="N")
    add("--gen_length", type=count(1), default=512, metavar="N")
    add("--block_length", type=count(1), default=32, metavar="N")
    add("--steps", type=count(1), nargs="+", default=[64, 128, 256], metavar="N")
    add("--batch", type=count(1), nargs="+", default=[1], metavar="B")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--cache", nargs="+", choices=("none", "prefix", "dual"), default=["none"])
    add("--threshold", type=number, nargs="+", default=[], metavar="P", help="also with threshold decoding at P")
    add("--repeats", type=count(1), default=3, metavar="N", help="counted rounds (%(default)s)")
    add("--circuit", action="store_true", help="the circuit alone: its parts and every message algorithm")
    add("--against-pytorch", metavar="DIR", help="a checkout of the public PyTorch CoDD, timed on the same weights")
    add("--pytorch-python", default=sys.executable, metavar="EXE", help="the interpreter that has torch (this one)")
    add("--output_dir", default="results/latency", metavar="DIR", help="table, JSON and plot (%(default)s)")
    return parser


def build_model(args) -> CoDD:
    """The checkpoint, or random weights of a preset, with a random circuit if a method needs one."""
    if args.ckpt is not None:
        model = CoDD.from_pretrained(args.ckpt, adapter=args.peft_ckpt, dtype=args.dtype)
        backbone = model.backbone
    elif args.peft_ckpt is not None:
        raise ValueError("--peft_ckpt merges an adapter into a checkpoint; give --ckpt beside it")
    else:
        config = PRESETS[args.preset]
        backbone = Transformer(config, dtype=jnp.dtype(args.dtype), layout=args.layout, rngs=nnx.Rngs(0))
    hmm = None
    if set(args.methods) != {"backbone"}:
        hmm = HMM.random(jax.random.key(1), args.block_length, args.states, backbone.config.vocab_size)
    return CoDD(backbone, hmm)


def run(args) -> dict:
    """The measurement that the command line asks for."""
    work = Workload(
        prompt_length=args.prompt_length,
        gen_length=args.gen_length,
        block_length=args.block_length,
        batches=tuple(args.batch),
        steps=tuple(args.steps),
        methods=tuple(args.methods),
        caches=tuple(args.cache),
        thresholds=tuple(args.threshold),
        repeats=args.repeats,
    )
    model = build_model(args)
    if args.against_pytorch is None:
        return measure(model, work)
    with PytorchPeer([args.pytorch_python, str(WORKER)], args.against_pytorch, model.backbone) as peer:
        return measure(model, work, peer.ask)


def run_circuit(args) -> dict:
    """The circuit alone, with LLaDA's vocabulary."""
    work = CircuitWork(args.states, length=args.block_length, batches=tuple(args.batch), repeats=args.repeats)
    if args.against_pytorch is None:
        return measure_circuit(work)
    small = Transformer(PRESETS["llada-1m"], rngs=nnx.Rngs(0))  # the worker wants a backbone
    with PytorchPeer([args.pytorch_python, str(WORKER)], args.against_pytorch, small) as peer:
        return measure_circuit(work, peer.ask)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, measures, and prints where the results are."""
    parser = make_parser()
    args = parser.parse_args(argv)
    enable_compilation_cache()
    with plain_warnings():
        try:
            result = run_circuit(args) if args.circuit else run(args)
        except (ValueError, OSError, ImportError) as error:
            parser.error(str(error))
    folder = pathlib.Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    name, text = ("circuit", circuit_table(result)) if args.circuit else ("latency", table(result))
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    if not args.circuit:
        plot(result, folder / "latency.png")
    print(text)
    print(folder / f"{name}.json")


if __name__ == "__main__":
    main()
