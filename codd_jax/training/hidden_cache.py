"""The frozen backbone's view of corrupted windows, computed once: circuit training then never runs the backbone."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from codd_jax.backbones import Transformer
from codd_jax.training.corruption import corrupt
from codd_jax.training.windows import WindowBatch, put_windows, take_windows


@struct.dataclass
class HiddenCache:
    """Corrupted windows with what the backbone makes of them.

    Attributes:
      hidden: [count, length + 1, width], the final-normed states from one position before the window to its end.
      tokens: [count, length] int32, the clean tokens.
      masked: [count, length] bool, the hidden ones.
    """

    hidden: jax.Array
    tokens: jax.Array
    masked: jax.Array

    def take(self, rows: jax.Array) -> "HiddenCache":
        """The windows `rows` [batch] int32."""
        return jax.tree.map(lambda array: array[rows], self)


def window_hidden(
    backbone: Transformer, tokens: jax.Array, lengths: jax.Array, starts: jax.Array, length: int
) -> jax.Array:
    """Hidden states [batch, length + 1, width] of each window and of the position before it (at 0: the first twice).

    The extra position serves families that predict the next token (Dream); `window_log_phi` undoes it for both.
    """
    hidden = backbone.encode(tokens, lengths)
    positions = jnp.maximum(starts[:, None] - 1 + jnp.arange(length + 1), 0)
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)


def window_log_phi(backbone: Transformer, hidden: jax.Array) -> jax.Array:
    """Log-potentials [batch, length, vocab] of windows from their `window_hidden` [batch, length + 1, width]."""
    positions = jnp.broadcast_to(jnp.arange(1, hidden.shape[1]), (hidden.shape[0], hidden.shape[1] - 1))
    return jax.nn.log_softmax(backbone.logits(hidden.astype(backbone.dtype), positions), axis=-1)


def cache_hidden_states(
    graphdef: nnx.GraphDef,
    params: Any,
    batches: Iterable[tuple[WindowBatch, jax.Array]],
    key: jax.Array,
    *,
    length: int,
    mask_id: int,
) -> HiddenCache:
    """Corrupt windows and keep the backbone's hidden states of them.

    Args:
      graphdef, params: the backbone as `nnx.split` gives it.
      batches: pairs of equally shaped `WindowBatch`es and numbers of tokens to hide [batch].
      key: typed PRNG key of the corruption; batch i uses fold_in(key, i).
      length: the window length T.
      mask_id: what stands in for a hidden token.
    """

    @jax.jit
    def encode(params: Any, batch: WindowBatch, counts: jax.Array, key: jax.Array) -> HiddenCache:
        clean = take_windows(batch.tokens, batch.starts, length)
        noisy, masked = corrupt(key, clean, counts, mask_id)
        rows = put_windows(batch.tokens, batch.starts, noisy)
        hidden = window_hidden(nnx.merge(graphdef, params), rows, batch.lengths, batch.starts, length)
        return HiddenCache(hidden=hidden, tokens=clean, masked=masked)

    parts = [
        encode(params, batch, counts, jax.random.fold_in(key, index)) for index, (batch, counts) in enumerate(batches)
    ]
    if not parts:
        raise ValueError("there is nothing to cache: `batches` is empty")
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
