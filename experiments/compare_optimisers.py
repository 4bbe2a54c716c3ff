"""Which rule trains a circuit best in a given time? Every rule on the demo and on your own text, over several seeds."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from codd_jax.compilation import enable_compilation_cache
from codd_jax.evaluation.flags import Parser, count, number, plain_warnings

EXAMPLES = """
examples
  the demo, nine rules and three seeds (an hour and a half on two cores):
    python -m experiments.compare_optimisers
  GSM8K beside it, with a backbone that `experiments.train_backbone` made:
    python -m experiments.compare_optimisers --ckpt runs/gsm8k_backbone --data gsm8k/train.jsonl
  two corpora at once, a core each, into one table:
    taskset -c 0 python -m experiments.compare_optimisers --ckpt … --data … --only demo &
    taskset -c 1 python -m experiments.compare_optimisers --ckpt … --data … --only own; wait
    python -m experiments.compare_optimisers --ckpt … --data …
  a few rules, quickly:
    python -m experiments.compare_optimisers --rules adam em ebw --seeds 0 --seconds 30
  whether the rules' own rates suit your text:
    python -m experiments.compare_optimisers --ckpt … --data … --seeds 0 --seconds 20 --rate_factors 0.3 1 3
the same command again runs what is missing: a run that is there is not repeated
"""


def make_parser() -> Parser:
    """The command line."""
    name = "python -m experiments.compare_optimisers"
    parser = Parser(prog=name, usage=f"{name} [flags]", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--rules", nargs="+", metavar="NAME", help="of the table's names, quoted where they have blanks (all)")
    add("--seeds", nargs="+", type=count(0), default=[0, 1, 2], metavar="N", help="(0 1 2)")
    add("--seconds", type=number, default=180.0, help="processor seconds a run, after its first step (%(default)s)")
    add("--rate_factors", nargs="+", type=number, metavar="F", help="every rule at F times its own rate, for each F")
    add("--ckpt", metavar="CKPT", help="a backbone for a corpus of your own, beside the demo")
    add("--data", metavar="DATA", help="its text: a JSONL file or a hub data set of questions and answers")
    add("--corpus", default="text", metavar="NAME", help="what that corpus is called in the table (%(default)s)")
    add("--only", choices=("demo", "own"), help="leave the other corpus out")
    add("--limit", type=count(1), default=6000, metavar="N", help="examples of that corpus; with few, rules that are "
        "fast overfit within the time and the table shows who does (%(default)s)")  # fmt: skip
    add("--states", type=count(1), default=64, metavar="H", help="of the circuits (%(default)s)")
    add("--init", choices=("uniform", "data"), default="uniform", help="where they start (%(default)s)")
    add("--batch_size", type=count(1), default=64, metavar="B", help="windows of a step (%(default)s)")
    add("--masks", type=count(1), default=3, metavar="N", help="maskings of every example (%(default)s)")
    add("--output_dir", type=pathlib.Path, default=pathlib.Path("runs/optimisers"), metavar="DIR", help="(%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, runs, and prints the table."""
    parser = make_parser()
    args = parser.parse_args(argv)
    enable_compilation_cache()
    with plain_warnings():
        try:
            print(run(args))
        except (ValueError, OSError, FloatingPointError) as error:
            parser.error(str(error))
        except KeyboardInterrupt:
            print("\ninterrupted; finished runs are kept, the same command continues", file=sys.stderr)
            sys.exit(130)


def run(args: argparse.Namespace) -> str:
    """Compares, and gives the table and where it is."""
    from codd_jax.evaluation.provenance import identify
    from codd_jax.training.comparison import CONTENDERS, at_rates, compare_rules, comparison_table

    if (args.ckpt is None) != (args.data is None):
        raise ValueError("--ckpt and --data are of one corpus; give both or neither")
    if args.only == "own" and args.ckpt is None:
        raise ValueError("--only own needs a corpus of your own: --ckpt and --data")
    known = {contender.name: contender for contender in CONTENDERS}
    unknown = sorted(set(args.rules or ()) - known.keys())
    if unknown:
        raise ValueError(f"rule {', '.join(unknown)} is not in the table; known are {', '.join(known)}")
    corpora = {}
    if args.only != "own":
        corpora["demo"] = lambda seed: prepare(args, seed, None)
    if args.ckpt is not None and args.only != "demo":
        corpora[args.corpus] = lambda seed: prepare(args, seed, args.data)
    about = {"states": args.states, "init": args.init, "batch_size": args.batch_size, "masks": args.masks}
    about |= {"ckpt": identify(args.ckpt), "data": identify(args.data), "limit": args.limit}
    contenders = [known[name] for name in args.rules or known]
    if args.rate_factors:
        contenders = at_rates(contenders, args.rate_factors)
    result = compare_rules(
        corpora,
        args.output_dir,
        contenders=contenders,
        seeds=args.seeds,
        seconds=args.seconds,
        about=about,
    )
    return f"{comparison_table(result)}\n{args.output_dir / 'comparison.json'}"


def prepare(args: argparse.Namespace, seed: int, data: str | None):
    """Windows and a starting circuit: of the demo without `data`, else of the corpus of one's own."""
    from codd_jax.training.circuit_config import CircuitTraining
    from codd_jax.training.circuit_job import CircuitJob, prepare_job
    from experiments.demo_task.circuit import demo_texts
    from experiments.demo_task.decode import BUNDLE

    name = "demo" if data is None else args.corpus
    job = CircuitJob(
        backbone=str(BUNDLE) if data is None else args.ckpt,
        data=data,
        config=CircuitTraining(),
        output=args.output_dir,
        store=args.output_dir / "states" / name,
        dtype="float32",
        seed=seed,
        **{key: getattr(args, key) for key in ("states", "init", "batch_size", "masks")},
    )
    if data is not None:
        return prepare_job(dataclasses.replace(job, limit=args.limit))[:2]
    return prepare_job(job, demo_texts(0, held_out=job.held_out))[:2]


if __name__ == "__main__":
    main()
