"""Where the circuit's windows lie on a canvas that is longer than they are (paper, section 5.2 and algorithm 2)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax


def next_window(remaining: jax.Array, lengths: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """The next window of a greedy left-to-right cover, per row.

    A group starts at the leftmost point left and takes every point less than `window` further right; its window is
    centred on the group and clamped to the row. On a line this yields the fewest windows.

    Args:
      remaining: [B, L] bool, points not covered yet. lengths: [B] int32, real tokens of each row.

    Returns:
      start [B] int32 of the window, and the group [B, L] bool (empty where nothing remains).
    """
    ids = jnp.arange(remaining.shape[-1], dtype=jnp.int32)
    first = jnp.argmax(remaining, axis=-1).astype(jnp.int32)
    group = remaining & (ids < first[:, None] + window)
    last = jnp.max(jnp.where(group, ids, first[:, None]), axis=-1)
    start = first - (window - (last - first + 1)) // 2
    return jnp.clip(start, 0, jnp.maximum(lengths - window, 0)), group


@functools.partial(jax.jit, static_argnames="window")
def cover(points: jax.Array, lengths: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """The fewest windows that cover `points`, per row.

    Args:
      points: [B, L] bool. lengths: [B] int32, real tokens of each row; points lie inside them.
      window: length of a window.

    Returns:
      starts: [B, G] int32 with G = ceil(L / window), -1 where no window is needed.
      groups: [B, L] int32, the window that a point belongs to, -1 for other positions.
    """

    def lay(remaining, _):
        start, group = next_window(remaining, lengths, window)
        return remaining & ~group, (jnp.where(group.any(-1), start, -1), group)

    _, (starts, groups) = lax.scan(lay, points, length=-(-points.shape[-1] // window))
    index = jnp.argmax(groups, axis=0).astype(jnp.int32)
    return starts.T, jnp.where(points, index, -1)


def best_window(points: jax.Array, lengths: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """The published code's one window: around the point whose centred, clamped window holds the most points.

    Args:
      points: [B, L] bool. lengths: [B] int32.

    Returns:
      start [B] int32 (0 where there is no point) and the number of points inside [B] int32; the first best wins.
    """
    batch, width = points.shape
    ids = jnp.arange(width, dtype=jnp.int32)
    starts = jnp.clip(ids - window // 2, 0, jnp.maximum(lengths - window, 0)[:, None])
    before = jnp.concatenate([jnp.zeros((batch, 1), jnp.int32), jnp.cumsum(points, axis=-1, dtype=jnp.int32)], axis=-1)
    inside = jnp.take_along_axis(before, jnp.minimum(starts + window, width), axis=-1)
    inside = jnp.where(points, inside - jnp.take_along_axis(before, starts, axis=-1), -1)
    anchor = jnp.argmax(inside, axis=-1)[:, None]
    coverage = jnp.take_along_axis(inside, anchor, axis=-1)[:, 0]
    start = jnp.take_along_axis(starts, anchor, axis=-1)[:, 0]
    return jnp.where(coverage > 0, start, 0), jnp.maximum(coverage, 0)
