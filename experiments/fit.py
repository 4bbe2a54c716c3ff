"""Will it fit, will it compile? Compiles the real programs from shapes alone, for a TPU slice or this machine.

Neither weights nor a TPU are needed: the program that decoding or training runs is lowered with shapes and shardings,
and the real compiler reports the memory of each device. Beside it stand the floors: what the arithmetic, the memory
traffic and the links of that chip cost at least, from data sheets. Exit status: 0 where it fits, 1 where it does not,
2 for an error.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from codd_jax.backbones.attention import IMPLEMENTATIONS
from codd_jax.backbones.config import PRESETS
from codd_jax.evaluation.flags import Parser, count, plain_warnings

EXAMPLES = """
for TPU slices, in an environment of its own (libtpu must stay out of one that runs on GPU or CPU):
    python -m venv fit && fit/bin/pip install -r requirements.txt -r requirements-tpu-compile.txt
    fit/bin/python -m experiments.fit --preset llada-8b --topology v5e:2x4 --batch 8
slices are a generation (v4, v5e, v5p, v6e), a colon, and a shape in chips: v5e:2x4, v6e:4x4, v4:2x2x2, v5p:2x2x2

more examples
  on the devices at hand (a GPU, or this CPU):
    python -m experiments.fit --preset llada-8b --batch 8 --length 1024
  a checkpoint's own config.json, with its circuit, on a mesh of your choice:
    python -m experiments.fit --ckpt DIR --circuit gsm.jpc --topology v6e:2x4 --mesh data:2,model:4
  estimates for every mesh, at once, without compiling and without libtpu:
    python -m experiments.fit --preset dream-7b --topology v5e:4x4 --batch 16 --estimate
  fine-tuning backbone and circuit together, all weights with float32 masters, or LoRA; the circuit alone:
    python -m experiments.fit --train full --topology v6e:2x4 --batch 8
    python -m experiments.fit --train lora --rank 16 --topology v5e:2x4 --batch 8
    python -m experiments.fit --train circuit --topology v5e:2x4 --batch 64

reading the report
  The compiler counts the body of a loop once, and with it all layers but one: its FLOPs are compared with ours for a
  single layer. "arithmetic" and "memory" are floors of the whole step: products at the chip's peak rate, and weights,
  circuit and logits read once. "links" is the time to sum the residual stream over the model axis.
"""


def make_parser() -> Parser:
    """The command line."""
    name = "python -m experiments.fit"
    parser = Parser(prog=name, usage=f"{name} [flags]", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument_group("what").add_argument
    add("--preset", choices=sorted(PRESETS), help="a backbone by its sizes (llada-8b)")
    add("--ckpt", metavar="CKPT", help="in its place a config.json, the folder that holds it, or a hub id")
    add(
        "--circuit",
        metavar="H,V,T",
        help="states, tokens and window; or a circuit's file, folder or hub id; or 'none' (1024 states over the "
        "backbone's tokens, windows of 32, as published)",
    )
    add("--circuit_dtype", choices=("float32", "bfloat16"), default="float32", help="of the emissions (float32)")
    add("--dtype", choices=("bfloat16", "float32"), help="of the weights (bfloat16; float32 on CPU)")
    add("--batch", type=count(1), default=1, metavar="B", help="rows decoded together (1)")
    add("--length", type=count(1), default=768, metavar="L", help="positions of a row: prompt and generation (768)")
    add("--block_length", type=count(1), default=32, metavar="N", help="tokens of a block (32)")
    add(
        "--coupling", choices=("latent", "any_order", "none"), default="latent", help="how the circuit is used (latent)"
    )
    add("--cache", choices=("none", "dual"), default="none", help="keys and values kept within a block (none)")
    add(
        "--program",
        choices=("step", "block"),
        default="step",
        help="one step, or the loop over a block's, as with --cache (step)",
    )
    add("--attention", choices=IMPLEMENTATIONS, default="auto", help="which kernel (auto)")
    _add_training_flags(parser.add_argument_group("a training step in place of a denoising step").add_argument)
    add = parser.add_argument_group("where").add_argument
    add("--topology", metavar="SLICE", help="a TPU slice such as v5e:2x4 (the devices at hand)")
    add("--mesh", metavar="SPEC", help='"data:2,model:4": rows over data, weights over model (the fastest that fits)')
    add("--estimate", action="store_true", help="compile nothing: list the meshes with estimates")
    add = parser.add_argument_group("results").add_argument
    add("--json", action="store_true", help="print the report as JSON and nothing else")
    add("--output_dir", type=pathlib.Path, default=pathlib.Path("runs/fit"), help="gets the JSON (runs/fit)")
    return parser


def _add_training_flags(add: Any) -> None:
    add(
        "--train",
        choices=("full", "lora", "head", "none", "circuit"),
        help="an update of joint fine-tuning with that part of the backbone, or a step of circuit training on stored "
        "hidden states; --batch then counts its rows, or windows",
    )
    add("--windows", type=count(1), default=8, metavar="N", help="coupled windows of a row (8)")
    add("--accumulate", type=count(1), default=1, metavar="N", help="parts that a batch is worked through in (1)")
    add("--rank", type=count(1), default=16, help="of LoRA (16)")
    add("--param_dtype", choices=("float32", "bfloat16"), default="float32", help="of trained weights (float32)")
    add("--moment_dtype", choices=("float32", "bfloat16"), help="of Adam's first moment (as the weights)")
    add("--no_remat", action="store_true", help="keep activations in place of computing blocks twice")
    add("--shard_over_data", action="store_true", help="trained weights and optimiser state over the data axis, too")
    add("--rule", default="adam", help="of circuit training (adam)")
    add("--chunk", type=count(1), metavar="N", help="windows that a device works on at a time (all)")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, compiles, prints, writes; returns the exit status."""
    from codd_jax.fitting.report import render

    parser = make_parser()
    args = parser.parse_args(argv)
    with plain_warnings():
        try:
            report = ask(args) if args.train is None else ask_training(args)
            args.output_dir.mkdir(parents=True, exist_ok=True)
            path = args.output_dir / f"{report['name']}.json"
            path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        except (ValueError, OSError, ModuleNotFoundError) as error:
            parser.error(str(error))
    print(json.dumps(report, indent=2) if args.json else f"{render(report)}\n{path}")
    return 0 if report["fits"] in (True, None) else 1


def ask(args: argparse.Namespace) -> dict[str, Any]:
    """The report of a decoding program."""
    from codd_jax.fitting import question as fitting
    from codd_jax.fitting.inputs import read_backbone, read_circuit

    label, config = read_backbone(args.ckpt, args.preset)
    size = 2 if args.circuit_dtype == "bfloat16" else 4
    circuit = None if args.coupling == "none" else read_circuit(args.circuit, config, size)
    names = ("block_length", "coupling", "cache", "dtype", "program", "attention", "topology", "mesh")
    settings = {name: getattr(args, name) for name in names}
    return fitting.answer(
        fitting.Question(label, config, circuit, args.batch, args.length, **settings, compile=not args.estimate)
    )


def ask_training(args: argparse.Namespace) -> dict[str, Any]:
    """The report of a training step."""
    from codd_jax.fitting.inputs import read_backbone, read_circuit
    from codd_jax.training import joint_fitting as fitting
    from codd_jax.training.joint_config import JointTraining
    from codd_jax.training.lora import LoraConfig

    label, config = read_backbone(args.ckpt, args.preset)
    circuit, dtype = read_circuit(args.circuit, config), args.dtype or "bfloat16"
    if args.train == "circuit":
        if circuit is None:
            raise ValueError("--train circuit with --circuit none: there is nothing to train")
        program = fitting.CircuitProgram(config, circuit, args.rule, args.batch, args.chunk, dtype)
        return fitting.answer_circuit(label, program, topology=args.topology, compiling=not args.estimate)
    training = JointTraining(
        steps=1000,
        batch_size=args.batch,
        accumulate=args.accumulate,
        train=args.train,
        objective="factorised" if circuit is None else "coupled",
        lora=LoraConfig(args.rank),
        dtype=dtype,
        param_dtype=args.param_dtype,
        moment_dtype=args.moment_dtype,
        remat=not args.no_remat,
        shard_over_data=args.shard_over_data,
    )
    question = fitting.TrainingQuestion(
        label, config, circuit, training, args.length, args.windows, args.attention, args.topology, args.mesh,
        compile=not args.estimate,
    )  # fmt: skip
    return fitting.answer(question)


if __name__ == "__main__":
    sys.exit(main())
