"""Windows in rows of text: the T positions of each row that are corrupted, predicted and coupled."""

import jax
from flax import struct


@struct.dataclass
class WindowBatch:
    """Clean rows with one window each.

    Attributes:
      tokens: [batch, length] int32, right-padded.
      lengths: [batch] int32, the real tokens of each row; the window lies within them.
      starts: [batch] int32, the first position of each row's window.
    """

    tokens: jax.Array
    lengths: jax.Array
    starts: jax.Array


def take_windows(values: jax.Array, starts: jax.Array, length: int) -> jax.Array:
    """`values` [batch, positions, ...] at starts[b] … starts[b] + length - 1 → [batch, length, ...]."""
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, length))(values, starts)


def put_windows(rows: jax.Array, starts: jax.Array, windows: jax.Array) -> jax.Array:
    """`rows` [batch, positions] with `windows` [batch, length] written at starts[b]."""
    return jax.vmap(lambda row, start, window: jax.lax.dynamic_update_slice_in_dim(row, window, start, 0))(
        rows, starts, windows.astype(rows.dtype)
    )
