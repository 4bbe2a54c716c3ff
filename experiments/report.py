"""A page about runs: tables in the paper's form, plots, comparisons of CoDD with the backbone alone, what to repeat."""

from collections.abc import Sequence

from codd_jax.evaluation.flags import Parser

EXAMPLES = """
examples
  everything that was run so far:
    python -m experiments.report results
  two runs and a grid of runs:
    python -m experiments.report results/0shot_llada_gsm8k results/0shot_llada_gsm8k_pc_llada-gsm-pc results/grid
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, writes the report, and prints where it is."""
    name = "python -m experiments.report"
    parser = Parser(prog=name, usage=f"{name} FOLDER... [flags]", description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="folders that a benchmark wrote: of a run, of a grid, or of many; runs that have not ended are shown as "
        "far as they got",
    )
    parser.add_argument(
        "--output_dir",
        default="report",
        metavar="DIR",
        help="gets report.html (one file), report.md, report.json and the plots as SVG and PNG (%(default)s)",
    )
    args = parser.parse_args(argv)
    from codd_jax.evaluation.report import write_report

    try:
        print(write_report(args.folders, args.output_dir))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
