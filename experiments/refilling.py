"""What refilled rows save: steps that devices spend on a mix of short and long answers, and steps the answers need."""

import json
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from codd_jax import CoDD, Transformer
from codd_jax.backbones import PRESETS
from codd_jax.compilation import enable_compilation_cache
from codd_jax.evaluation.flags import Parser, count, number, plain_warnings
from codd_jax.evaluation.refilling import Mix, measure_refilling

EXAMPLES = """
examples
  twenty batches of 8 on a small backbone of random weights:
    python -m experiments.refilling
  with threshold decoding, where rows differ in every block, and with cached keys and values:
    python -m experiments.refilling --threshold 0.02 --cache none dual
"""


def make_parser() -> Parser:
    """The command line."""
    name = "python -m experiments.refilling"
    parser = Parser(prog=name, usage=f"{name} [flags]", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--preset", default="llada-1m", choices=sorted(PRESETS), help="backbone shape, random weights (%(default)s)")
    add("--dtype", default="float32", choices=("bfloat16", "float32"), help="(%(default)s)")
    add("--batch_size", type=count(1), default=8, metavar="B", help="rows decoded together (%(default)s)")
    add("--batches", type=count(1), default=20, metavar="N", help="so many times as many requests (%(default)s)")
    add("--gen_length", type=count(1), default=128, metavar="N", help="longest answer (%(default)s)")
    add("--mean_length", type=count(1), default=32, metavar="N", help="of the answers (%(default)s)")
    add("--block_length", type=count(1), default=16, metavar="N", help="(%(default)s)")
    add("--steps", type=count(1), metavar="N", help="of the longest answer (one for each token)")
    add("--threshold", type=number, metavar="P", help="keep every token surer than this, in place of --steps")
    add("--cache", nargs="+", choices=("none", "prefix", "dual"), default=["none"], help="kept between steps (none)")
    add("--output_dir", default="results/refilling", metavar="DIR", help="JSON goes in here (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, measures, and prints where the results are."""
    parser = make_parser()
    args = parser.parse_args(argv)
    enable_compilation_cache()
    with plain_warnings():
        try:
            model = CoDD(
                Transformer(PRESETS[args.preset], dtype=jnp.dtype(args.dtype), layout="auto", rngs=nnx.Rngs(0))
            )
            mix = Mix(
                requests=args.batches * args.batch_size,
                batch_size=args.batch_size,
                gen_length=args.gen_length,
                block_length=args.block_length,
                mean_length=args.mean_length,
                steps=args.steps,
                threshold=args.threshold,
            )
            result = measure_refilling(model, mix, args.cache)
        except (ValueError, OSError) as error:
            parser.error(str(error))
    folder = pathlib.Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "refilling.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for run in result["runs"]:
        kind = f"cache {run['cache']}, {'refilled' if run['refill'] else 'waiting'}"
        print(
            f"{kind:<24}{run['device_steps']:>8} device-steps for {run['used_steps']} needed ({run['overhead']:+.1%}; "
            f"{run['overhead_with_last_batch']:+.1%} with the last batch), {run['seconds']:.1f} s"
        )
    print(folder / "refilling.json")


if __name__ == "__main__":
    main()
