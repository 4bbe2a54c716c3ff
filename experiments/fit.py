"""Will it fit, will it compile? Compiles the real denoising program from shapes alone, for a TPU slice or this machine.

Neither weights nor a TPU are needed: the program that decoding runs is lowered with shapes and shardings, and the real
compiler reports the memory of each device. Beside it stand the floors: what the arithmetic, the memory traffic and the
links of that chip cost at least, from data sheets. Exit status: 0 where it fits, 1 where it does not, 2 for an error.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from codd_jax.backbones.attention import IMPLEMENTATIONS
from codd_jax.backbones.config import PRESETS, BackboneConfig, config_from_huggingface
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
    add = parser.add_argument_group("where").add_argument
    add("--topology", metavar="SLICE", help="a TPU slice such as v5e:2x4 (the devices at hand)")
    add("--mesh", metavar="SPEC", help='"data:2,model:4": rows over data, weights over model (the fastest that fits)')
    add("--estimate", action="store_true", help="compile nothing: list the meshes with estimates")
    add = parser.add_argument_group("results").add_argument
    add("--json", action="store_true", help="print the report as JSON and nothing else")
    add("--output_dir", type=pathlib.Path, default=pathlib.Path("runs/fit"), help="gets the JSON (runs/fit)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, compiles, prints, writes; returns the exit status."""
    from codd_jax import fitting

    parser = make_parser()
    args = parser.parse_args(argv)
    with plain_warnings():
        try:
            report = fitting.answer(read_question(args))
            args.output_dir.mkdir(parents=True, exist_ok=True)
            path = args.output_dir / f"{report['name']}.json"
            path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        except (ValueError, OSError, ModuleNotFoundError) as error:
            parser.error(str(error))
    print(json.dumps(report, indent=2) if args.json else f"{fitting.render(report)}\n{path}")
    return 0 if report["fits"] in (True, None) else 1


def read_question(args: argparse.Namespace):
    """What is asked, with the sizes read from wherever they are."""
    from codd_jax.fitting import Question

    label, config = read_backbone(args)
    return Question(
        label,
        config,
        read_circuit(args, config),
        args.batch,
        args.length,
        block_length=args.block_length,
        coupling=args.coupling,
        cache=args.cache,
        dtype=args.dtype,
        program=args.program,
        attention=args.attention,
        topology=args.topology,
        mesh=args.mesh,
        compile=not args.estimate,
    )


def read_backbone(args: argparse.Namespace) -> tuple[str, BackboneConfig]:
    """Its name and sizes, from --ckpt or --preset."""
    if args.ckpt is None:
        return args.preset or "llada-8b", PRESETS[args.preset or "llada-8b"]
    if args.preset:
        raise ValueError(f"--preset {args.preset} and --ckpt {args.ckpt} are two backbones; give one of them")
    path = pathlib.Path(args.ckpt)
    if not path.is_file():
        from codd_jax.io import checkpoint, hub

        folder = hub.resolve(args.ckpt, allow_patterns=["config.json", "codd.json", "*/config.json"])
        path = checkpoint.parts(folder)[0] or folder
    return path.resolve().name if path.is_dir() else path.resolve().parent.name, config_from_huggingface(path)


def read_circuit(args: argparse.Namespace, config: BackboneConfig):
    """The circuit's sizes, None for none; ValueError where it is over another vocabulary."""
    from codd_jax.costs import CircuitShape

    if args.circuit == "none" or args.coupling == "none":
        return None
    text, size = args.circuit, 2 if args.circuit_dtype == "bfloat16" else 4
    if text is None:
        text = f"1024,{config.vocab_size},32"
    words = text.split(",")
    if len(words) == 3 and all(word.strip().isdigit() for word in words):
        states, tokens, length = map(int, words)
    else:
        from codd_jax.io.circuit import describe

        info = describe(text)
        states, tokens, length = info.num_states, info.vocab_size, info.length
    if tokens != config.vocab_size:
        raise ValueError(f"the circuit is over {tokens} tokens, the backbone over {config.vocab_size}")
    return CircuitShape(states, tokens, length, size)


if __name__ == "__main__":
    sys.exit(main())
