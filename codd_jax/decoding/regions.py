"""Which positions of a canvas a step may fill, and the record of what it decided about them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from codd_jax.decoding.canvas import Canvas
from codd_jax.decoding.strategy import Strategy


class Outcome(NamedTuple):
    """What a step decided; P positions per row.

    Attributes:
      positions: [B, P] int32. token: [B, P] int32. commit: [B, P] bool.
      failed: [B] bool, the circuit was wanted but found the evidence impossible.
      finite: [B] bool, no NaN or +inf among the logits that were looked at.
    """

    positions: jax.Array
    token: jax.Array
    commit: jax.Array
    failed: jax.Array
    finite: jax.Array


def competing(canvas: Canvas, strategy: Strategy) -> jax.Array:
    """[B, L] bool: the masks that a step may fill, those of the block and any left before it."""
    ids = jnp.arange(canvas.tokens.shape[-1], dtype=jnp.int32)
    return (canvas.tokens == strategy.mask_id) & (ids < canvas.block.end[:, None])


def rows_at_work(canvas: Canvas, strategy: Strategy) -> jax.Array:
    """[B] bool: rows that are not done, have a mask to fill and a step left in this block."""
    left = competing(canvas, strategy).any(axis=-1)
    return ~canvas.done & left & (canvas.block.step < canvas.block.steps)


def stray_positions(masks: jax.Array, before: jax.Array, room: int) -> tuple[jax.Array, jax.Array]:
    """The first `room` masks [B, L] left of `before` [B], ascending, and whether each is one; two [B, room]."""
    width = masks.shape[-1]
    ids = jnp.arange(width, dtype=jnp.int32)
    positions = jnp.sort(jnp.where(masks & (ids < before[:, None]), ids, width), axis=-1)[:, :room]
    return jnp.minimum(positions, width - 1), positions < width


def write(tokens: jax.Array, outcome: Outcome, active: jax.Array) -> jax.Array:
    """`tokens` [B, L] with the committed proposals written where the row is at work."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    # Clipped positions repeat the row's last one: what is not committed is dropped, not written back.
    where = jnp.where(outcome.commit & active[:, None], outcome.positions, tokens.shape[-1])
    return tokens.at[rows, where].set(outcome.token, mode="drop")
