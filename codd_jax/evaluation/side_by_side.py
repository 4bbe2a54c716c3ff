"""One prompt decoded by the backbone alone and with the circuit, for reading side by side."""

import dataclasses
import json
import pathlib
import textwrap
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from codd_jax.evaluation.results import write_json
from codd_jax.evaluation.sampling import TextModel


@dataclasses.dataclass(frozen=True)
class Column:
    """One decoding of the prompt.

    Attributes:
      title: what was used.
      text: the answer.
      num_tokens, steps_used: its length and the backbone calls that it took.
      seconds: wall time, compilation included.
    """

    title: str
    text: str
    num_tokens: int
    steps_used: int
    seconds: float


def compare(model: TextModel, prompt: str, decode: Any, *, system: str | None, seed: int) -> list[Column]:
    """Decodes a user's prompt without the circuit and, if the model has one that `decode` uses, with it.

    Args:
      model: a `CoDD`.
      prompt: the user's message.
      decode: a `DecodeConfig`.
      system: the system message, or None.
      seed: of every draw.
    """
    variants = [("backbone alone", dataclasses.replace(decode, coupling="none", windows=None))]
    if decode.coupling != "none":
        variants.append((f"CoDD ({decode.coupling.replace('_', '-')} coupling)", decode))
    columns = []
    for title, variant in variants:
        started = time.perf_counter()
        out = model.generate([prompt], variant, seed=seed, system=system)
        columns.append(
            Column(
                title=title,
                text=out.text[0],
                num_tokens=len(out.tokens[0]),
                steps_used=int(np.asarray(out.steps_used)[0]),
                seconds=round(time.perf_counter() - started, 3),
            )
        )
    return columns


def render(columns: Sequence[Column], width: int = 120) -> str:
    """The columns as text, side by side in `width` characters."""
    gap = " │ "
    wide = max(20, (width - len(gap) * (len(columns) - 1)) // len(columns))
    cells = []
    for column in columns:
        head = [
            column.title,
            f"{column.num_tokens} tokens, {column.steps_used} steps, {column.seconds:.1f} s",
            "─" * wide,
        ]
        body = [line for part in column.text.splitlines() for line in textwrap.wrap(part, wide) or [""]]
        cells.append(head + (body or ["(nothing)"]))
    height = max(map(len, cells))
    rows = zip(*(cell + [""] * (height - len(cell)) for cell in cells), strict=True)
    return "\n".join(gap.join(line.ljust(wide) for line in row).rstrip() for row in rows)


def write(folder: str | pathlib.Path, prompt: str, columns: Sequence[Column], decode: Any, seed: int) -> pathlib.Path:
    """Writes the comparison as `side_by_side.json` into a folder and returns the file's path."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    decoding = json.loads(json.dumps(dataclasses.asdict(decode), default=str))
    content = {"prompt": prompt, "decoding": decoding, "seed": seed}
    return write_json(
        folder / "side_by_side.json", {**content, "columns": [dataclasses.asdict(column) for column in columns]}
    )
