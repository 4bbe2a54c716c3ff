"""MATH500 with a diffusion language model, alone or coupled by a circuit (CoDD)."""

from collections.abc import Sequence

from codd_jax.evaluation import command
from codd_jax.evaluation.presets import TASKS

PRESET = TASKS["math500"]


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, runs, and prints where the results are."""
    command.main(PRESET, __doc__, argv)


if __name__ == "__main__":
    main()
