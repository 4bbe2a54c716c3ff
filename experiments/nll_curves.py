"""Likelihood against mask ratio, figures 1 and 2 of the paper: token by token, one step alone, one step coupled.

Without a checkpoint it runs on the built-in demo. Any number of circuits are compared on the same windows.
"""

import json
import pathlib
from collections.abc import Sequence

from codd_jax.compilation import enable_compilation_cache
from codd_jax.evaluation.curves import RATIOS, CurveSettings, measure_curves
from codd_jax.evaluation.curves_report import curves_table, plot_curves, summarise_curves
from codd_jax.evaluation.flags import Parser, count, number, plain_warnings

EXAMPLES = """
examples
  the demo:
    python -m experiments.nll_curves
  a backbone, its circuit and a modulated one on held-out text:
    python -m experiments.nll_curves --ckpt runs/gsm8k_backbone --data gsm8k/test.jsonl \\
        --circuit CoDD=runs/circuit modulated=runs/modulated --output_dir runs/curves
"""


def make_parser() -> Parser:
    """The command line."""
    name = "python -m experiments.nll_curves"
    parser = Parser(prog=name, usage=f"{name} [flags]", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--ckpt", metavar="CKPT", help="a backbone, with its circuit or without; default: the demo's")
    add("--circuit", nargs="+", default=[], metavar="NAME=CKPT", help="circuits, and what their curves are called")
    add("--data", metavar="FILE", help="held-out text: JSONL or a hub data set; default: the demo's problems")
    add("--question_field", default="question", metavar="NAME", help="(%(default)s)")
    add("--answer_field", default="answer", metavar="NAME", help="(%(default)s)")
    add("--split", default="test", metavar="NAME", help="of a hub data set or a folder (%(default)s)")
    add("--limit", type=count(1), metavar="N", help="the first N examples only")
    add("--ratios", type=number, nargs="+", default=list(RATIOS), metavar="R", help="mask ratios (0.1 to 1)")
    add("--windows", type=count(1), default=256, metavar="N", help="windows measured (%(default)s)")
    add(
        "--sequential_windows", type=count(0), default=64, metavar="N", help="of them also token by token (%(default)s)"
    )
    add("--orders", type=count(1), default=8, metavar="N", help="orders in which each is revealed (%(default)s)")
    add("--batch_size", type=count(1), default=32, metavar="N", help="(%(default)s)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the backbone (%(default)s)")
    add("--seed", type=count(0), default=0, metavar="N")
    add("--output_dir", default="runs/nll_curves", metavar="DIR", help="the same command continues (%(default)s)")
    return parser


def run(args) -> dict:
    """Loads, measures, and writes curves.json, curves.md and curves.png."""
    from codd_jax import CoDD
    from codd_jax.evaluation.provenance import environment, identify
    from codd_jax.io.circuit import load_circuit
    from codd_jax.training.rows import bucketed, lay_out
    from codd_jax.training.store import fingerprint_rows
    from experiments.demo_task.decode import BUNDLE

    named = dict(entry.partition("=")[::2] for entry in args.circuit)
    if not all(named.values()):
        raise ValueError("--circuit takes NAME=CKPT pairs, as in --circuit CoDD=runs/circuit")
    if args.ckpt is not None and args.data is None:
        raise ValueError("--ckpt without --data: the demo's problems suit the demo's backbone alone; give --data FILE")
    settings = CurveSettings(
        tuple(args.ratios), args.windows, args.sequential_windows, args.orders, args.batch_size, args.seed
    )
    model = CoDD.from_pretrained(args.ckpt or BUNDLE, circuit=False if named else None, dtype=args.dtype)
    circuits = {name: load_circuit(path) for name, path in named.items()}
    if not circuits and model.hmm is not None:
        circuits = {"CoDD": model.hmm}
    if not circuits:
        raise ValueError(f"{args.ckpt} holds no circuit; name one or more with --circuit NAME=CKPT")
    length = next(iter(circuits.values())).length
    examples = _examples(args, model.tokenizer)
    config = model.config
    groups = [
        lay_out([examples[index] for index in group], length, config.eos_id, config.pad_id)
        for group in bucketed(examples, length)
    ]
    sources = {
        "backbone": identify(args.ckpt or str(BUNDLE)),
        "data": identify(args.data) if args.data else "demo",
        "circuit_files": {name: identify(path) for name, path in named.items()},
        "dtype": args.dtype,
        "rows": fingerprint_rows(groups),
    }
    folder = pathlib.Path(args.output_dir)
    lines = measure_curves(model.backbone, circuits, groups, settings, folder, sources)
    result = {**summarise_curves(lines, settings.ratios), "sources": sources, "environment": environment()}
    (folder / "curves.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / "curves.md").write_text(curves_table(result), encoding="utf-8")
    plot_curves(result, folder / "curves.png")
    return result


def _examples(args, tokenizer) -> list:
    from codd_jax.training.dataset import read_examples
    from experiments.demo_task.data import demo_examples

    if args.data is None:
        return demo_examples(tokenizer, args.limit or 512, args.seed, held_out=True)
    fields = {"question_field": args.question_field, "answer_field": args.answer_field}
    return read_examples(args.data, tokenizer, **fields, split=args.split, limit=args.limit)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, measures, and prints the tables."""
    parser = make_parser()
    args = parser.parse_args(argv)
    enable_compilation_cache()
    with plain_warnings():
        try:
            result = run(args)
        except (ValueError, OSError, FloatingPointError) as error:
            parser.error(str(error))
    print(curves_table(result))
    print(pathlib.Path(args.output_dir) / "curves.png")


if __name__ == "__main__":
    main()
