"""Decoding with keys and values kept between the steps of a block: approximate, and off by default.

After Fast-dLLM (arXiv 2505.22618): a refresh runs the backbone on the whole canvas and keeps its keys and values; the
steps up to the next refresh compute few positions and read what was kept for the others. "dual" computes the block,
"prefix" the block and everything after it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from codd_jax.decoding.canvas import Canvas
from codd_jax.decoding.denoiser import Reader, read_canvas, read_features, step_rows
from codd_jax.decoding.regions import competing, stray_positions
from codd_jax.decoding.strategy import Numbers, Strategy

# Widths that "prefix" computes: a block's distance from the end of its row, rounded up to one of this many parts of the
# longest generation. More would waste less on average, and compile more programs.
_WIDTHS = 4


@runtime_checkable
class CachedDenoiser(Protocol):
    """A `TwoPartDenoiser` that can compute chosen positions against what it kept for the others."""

    def encode_and_keep(self, params: Any, tokens: jax.Array, lengths: jax.Array, call: jax.Array) -> tuple[Any, Any]:
        """`encode`'s features [B, L, ...], and what `encode_again` needs to know of the whole canvas."""

    def encode_again(
        self, params: Any, kept: Any, tokens: jax.Array, lengths: jax.Array, positions: jax.Array
    ) -> jax.Array:
        """Features [B, P, ...] at `positions` [B, P] alone; those outside 0..L-1 do not count."""

    def lookback(self, params: Any) -> int:
        """How far left of a position the features lie that its logits are made of: 0 or 1."""


class Memory(NamedTuple):
    """What a refresh leaves to the steps after it.

    Attributes:
      features: [B, L, ...] of the whole canvas as it was (2B rows with guidance). kept: the denoiser's own.
      positions: [B, P] int32, what is computed again in every step; outside 0..L-1 where there is nothing.
      step: [B] int32, the blocks' steps that the refresh belongs to; rows step together.
    """

    features: Any
    kept: Any
    positions: jax.Array
    step: jax.Array


@functools.partial(jax.jit, static_argnames=("denoiser", "strategy", "strays", "span"))
def refresh(denoiser: Any, params: Any, canvas: Canvas, strategy: Strategy, strays: int, span: int) -> Memory:
    """Runs the backbone on the whole canvas; strays: static room for masks before the block, span: static width."""
    tokens, lengths = step_rows(canvas.tokens, canvas.given, canvas.lengths, strategy)
    features, kept = denoiser.encode_and_keep(params, tokens, lengths, canvas.call)
    positions = _positions(canvas, strategy, denoiser.lookback(params), strays, span)
    return Memory(features, kept, positions, canvas.block.step)


def read_step(
    denoiser: Any, params: Any, canvas: Canvas, memory: Memory | None, strategy: Strategy, numbers: Numbers
) -> Reader:
    """Logits of the canvas: the refresh's own in the step it belongs to, after that computed against what was kept.

    Without a memory the backbone runs on the whole canvas.
    """
    if memory is None:
        return read_canvas(
            denoiser, params, canvas.tokens, canvas.given, canvas.lengths, canvas.call, strategy, numbers
        )

    def again():
        tokens, lengths = step_rows(canvas.tokens, canvas.given, canvas.lengths, strategy)
        positions = jnp.tile(memory.positions, (tokens.shape[0] // canvas.tokens.shape[0], 1))
        new = denoiser.encode_again(params, memory.kept, tokens, lengths, positions)
        width = tokens.shape[1]
        # A negative index would count from the row's end.
        where = jnp.where(positions < 0, width, positions)
        return memory.features.at[jnp.arange(tokens.shape[0])[:, None], where].set(new, mode="drop")

    features = jax.lax.cond(jnp.all(canvas.block.step == memory.step), lambda: memory.features, again)
    return read_features(denoiser, params, features, canvas.call, strategy, numbers)


def cache_span(canvas: Canvas, strategy: Strategy, longest: int, suffix: int) -> int:
    """Static number of positions from the block's start on that a step computes again.

    longest, suffix: most positions that a row generates in all, and from this block's start on.
    """
    if strategy.cache != "prefix":
        return strategy.block_length
    part = -(-longest // _WIDTHS)
    return min(max(-(-suffix // part) * part, strategy.block_length), canvas.tokens.shape[-1])


def _positions(canvas: Canvas, strategy: Strategy, lookback: int, strays: int, span: int) -> jax.Array:
    """[B, P] int32: the block (and what follows, up to `span`), the masks left before it, and `lookback` before each.

    Dream's first logits of a block are made at the position before it, which is computed again for their sake: it sees
    the block's new tokens. The masks before the block are those at the refresh: once filled they are still computed,
    since what was kept for them is a mask's. No row's result depends on the masks of its batch mates.
    """
    width = canvas.tokens.shape[-1]
    ids = canvas.block.start[:, None] + jnp.arange(-lookback, span, dtype=jnp.int32)
    ids = jnp.where(ids < canvas.lengths[:, None], ids, width)
    if not strays:
        return ids
    where, found = stray_positions(competing(canvas, strategy), canvas.block.start, min(strays, width))
    return jnp.concatenate([jnp.where(found, where - back, width) for back in range(lookback + 1)] + [ids], axis=-1)
