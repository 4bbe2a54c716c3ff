"""Rows of prompt, solution and EOS as decoding lays them out, and the masks that training puts on them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from codd_jax.training.dataset import Example

SCHEMES = ("uniform", "blockwise")


@struct.dataclass
class Rows:
    """Clean rows `[prompt | solution + EOS | padding]`; solution and EOS fill whole windows.

    Attributes:
      tokens: [batch, positions] int32.
      prompt_lengths: [batch] int32, where the first window starts.
      lengths: [batch] int32, the real tokens of each row, EOS included.
      window: the window length T, static.
    """

    tokens: jax.Array
    prompt_lengths: jax.Array
    lengths: jax.Array
    window: int = struct.field(pytree_node=False)

    @property
    def num_windows(self) -> jax.Array:
        """[batch] int32, the whole windows of each row."""
        return (self.lengths - self.prompt_lengths) // self.window

    def take(self, rows: jax.Array | Sequence[int]) -> Rows:
        """The rows with these numbers."""
        return jax.tree.map(lambda array: array[rows], self)


def lay_out(
    examples: Sequence[Example],
    length: int,
    eos_id: int,
    pad_id: int,
    bucket: int = 64,
    max_length: int | None = None,
) -> Rows:
    """Rows on the host (NumPy), as wide as the longest example, rounded up to a multiple of `bucket`.

    Args:
      examples: one a row, in this order.
      length: the window length T; every solution gets at least one EOS and is filled up with it to a multiple of T.
      eos_id, pad_id: of the backbone.
      bucket: widths are multiples of it, so that batches of like lengths share a compiled program.
      max_length: longer rows are left out, with a warning; the context that the backbone was made for, say.

    Raises:
      ValueError: no examples, or none that is short enough.
    """
    if length < 1 or bucket < 1:
        raise ValueError(f"window length {length} and bucket {bucket} must be at least 1")
    examples = _fitting(examples, length, max_length)
    filled = [_filled(example, length) for example in examples]
    tokens = np.full((len(examples), -(-max(filled) // bucket) * bucket), pad_id, np.int32)
    for row, (example, end) in enumerate(zip(examples, filled, strict=True)):
        first, last = len(example.prompt), len(example.prompt) + len(example.solution)
        tokens[row, :first] = example.prompt
        tokens[row, first:last] = example.solution
        tokens[row, last:end] = eos_id
    prompts = np.asarray([len(example.prompt) for example in examples], np.int32)
    return Rows(tokens=tokens, prompt_lengths=prompts, lengths=np.asarray(filled, np.int32), window=length)


def lay_out_groups(
    examples: Sequence[Example],
    length: int,
    eos_id: int,
    pad_id: int,
    bucket: int = 64,
    max_length: int | None = None,
) -> list[Rows]:
    """`lay_out` for every width apart, ascending: short rows do not cost what long ones do."""
    examples = _fitting(examples, length, max_length)
    groups = bucketed(examples, length, bucket)
    return [lay_out([examples[index] for index in group], length, eos_id, pad_id, bucket) for group in groups]


def bucketed(examples: Sequence[Example], length: int, bucket: int = 64) -> list[list[int]]:
    """Numbers of the examples, grouped by the width that `lay_out` gives them alone; widths ascend."""
    groups: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(-(-_filled(example, length) // bucket), []).append(index)
    return [groups[width] for width in sorted(groups)]


def _fitting(examples: Sequence[Example], length: int, max_length: int | None) -> list[Example]:
    """The examples of at most `max_length` positions; a warning where some are longer, a ValueError where all are."""
    if not examples:
        raise ValueError("there are no examples to lay out")
    filled = [_filled(example, length) for example in examples]
    kept = [example for example, size in zip(examples, filled, strict=True) if max_length is None or size <= max_length]
    if not kept:
        raise ValueError(
            f"none of {len(examples)} examples fits {max_length} positions (the shortest needs {min(filled)}); allow "
            "longer rows or use shorter examples"
        )
    if len(kept) < len(examples):
        warnings.warn(
            f"{len(examples) - len(kept)} of {len(examples)} examples are longer than {max_length} positions and are "
            "left out",
            stacklevel=3,
        )
    return kept


def _filled(example: Example, length: int) -> int:
    """Tokens of an example's row: its prompt, and its solution with at least one EOS in whole windows."""
    return len(example.prompt) + (len(example.solution) // length + 1) * length


@functools.partial(jax.jit, static_argnames=("mask_id", "scheme"))
def mask_rows(
    key: jax.Array, rows: Rows, mask_id: int, scheme: str = "uniform", ratios: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hides solution tokens, the EOS that fills them up included, by the forward process of masked diffusion.

    Args:
      key: typed PRNG key; rows draw from fold_in(key, row number).
      rows: clean rows.
      mask_id: what stands in for a hidden token.
      scheme: "uniform" hides every solution token with probability t. "blockwise" is a moment of block-wise decoding:
        windows before a random one are known, those after it hidden, its own tokens hidden with probability t.
      ratios: t of each row, [batch]; by default uniform over (0, 1), stratified over the batch.

    Returns:
      The noisy tokens [batch, positions], which positions are hidden [batch, positions] bool, and t [batch].
    """
    if scheme not in SCHEMES:
        raise ValueError(f"masking scheme {scheme!r} is unknown; known are {', '.join(SCHEMES)}")
    batch, width = rows.tokens.shape
    ratio_key, block_key, token_key = jax.random.split(key, 3)
    if ratios is None:
        ratios = stratified_ratios(ratio_key, batch)
    numbers = jnp.arange(batch)
    positions = jnp.arange(width)
    prompts, lengths = jnp.asarray(rows.prompt_lengths), jnp.asarray(rows.lengths)
    inside = (positions >= prompts[:, None]) & (positions < lengths[:, None])
    draw = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(token_key, row), (width,)))(numbers)
    masked = draw < ratios[:, None]
    if scheme == "blockwise":
        share = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(block_key, row)))(numbers)
        blocks = (lengths - prompts) // rows.window
        active = jnp.minimum((share * blocks).astype(jnp.int32), blocks - 1)
        block = (positions - prompts[:, None]) // rows.window
        masked = jnp.where(block == active[:, None], masked, block > active[:, None])
    masked &= inside
    tokens = jnp.asarray(rows.tokens)
    return jnp.where(masked, mask_id, tokens), masked, ratios


def stratified_ratios(key: jax.Array, batch: int) -> jax.Array:
    """[batch] mask ratios, each uniform over (0, 1), one from each of `batch` equal parts of it in random order."""
    order_key, offset_key = jax.random.split(key)
    strata = jax.random.permutation(order_key, batch)
    return (strata + jax.random.uniform(offset_key, (batch,))) / batch


def window_starts(
    rng: np.random.Generator, prompt_length: int, length: int, window: int, aligned: bool = True
) -> np.ndarray:
    """Starts of windows that cover a solution: the blocks of block-wise decoding, or those moved by a random offset.

    Args:
      rng: draws the offset where windows are not aligned.
      prompt_length, length: of the row. window: T.
      aligned: blocks as LLaDA is decoded in; False: any offset, as full-canvas decoding (Dream) places windows.
    """
    starts = np.arange(prompt_length, length - window + 1, window)
    if aligned:
        return starts
    return np.minimum(starts + rng.integers(window), length - window)


def epoch_units(
    seed: int, epoch: int, rows: Rows, windows_per_row: int, aligned: bool = True
) -> Iterator[tuple[int, np.ndarray]]:
    """(row number, up to `windows_per_row` window starts) in random order: every window of every row comes once."""
    rng = np.random.default_rng((seed, epoch))
    units = []
    prompts, lengths = np.asarray(rows.prompt_lengths), np.asarray(rows.lengths)
    for row in range(len(prompts)):
        starts = rng.permutation(window_starts(rng, int(prompts[row]), int(lengths[row]), rows.window, aligned))
        units += [(row, starts[first : first + windows_per_row]) for first in range(0, len(starts), windows_per_row)]
    return (units[index] for index in rng.permutation(len(units)))
