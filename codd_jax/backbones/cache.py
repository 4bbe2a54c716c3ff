"""Keys and values kept from a whole forward pass, so that the next passes compute only the positions that changed.

Attention here is bidirectional, so kept keys and values are approximate once any token has changed (Fast-dLLM, arXiv
2505.22618).
"""

from typing import Any

import jax
import jax.numpy as jnp

from codd_jax.backbones.transformer import Block, Transformer, check_shapes


def encode_and_keep(backbone: Transformer, tokens: jax.Array, lengths: jax.Array) -> tuple[jax.Array, Any]:
    """`Transformer.encode`, and the keys and values of every block.

    Args:
      tokens: [B, L] int32, right-padded. lengths: [B] int32.

    Returns:
      Hidden states after the final norm [B, L, D], and the cache for `encode_again`: (keys, values), two
      [N, B, L, K, H] in the dtype of the computation, or in layout "unrolled" a tuple of N pairs [B, L, K, H].
    """
    check_shapes(tokens, lengths)
    table = backbone.rotary(tokens.shape[1])

    def step(x: jax.Array, block: Block, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        query, key, value = block.project(x, table)
        return block.mix(x, query, key, value, lengths), (key, value)

    x, cache = backbone.fold_blocks(step, backbone.embedded(tokens))
    return backbone.final_norm(x), cache


def encode_again(
    backbone: Transformer, cache: Any, tokens: jax.Array, lengths: jax.Array, positions: jax.Array
) -> jax.Array:
    """Hidden states after the final norm at `positions` only, with kept keys and values everywhere else.

    Args:
      cache: from `encode_and_keep` with rows of the same length L; it is read, not changed.
      tokens: [B, L] int32, as they are now. lengths: [B] int32.
      positions: [B, P] int32, in any order; a position may occur twice, and those outside 0..L-1 are left out (their
        hidden states mean nothing).

    Returns:
      [B, P, D].
    """
    check_shapes(tokens, lengths)
    length = tokens.shape[1]
    source = _source(positions, length)
    positions = jnp.clip(positions, 0, length - 1)
    table = tuple(part[positions] for part in backbone.rotary(length))

    def step(x: jax.Array, block: Block, kept: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        query, key, value = block.project(x, table)
        key, value = (_merge(old, new, source) for old, new in zip(kept, (key, value), strict=True))
        return block.mix(x, query, key, value, lengths), None

    x = backbone.embedded(jnp.take_along_axis(tokens, positions, axis=1))
    return backbone.final_norm(backbone.fold_blocks(step, x, cache)[0])


def _source(positions: jax.Array, length: int) -> jax.Array:
    """[B, L] int32: where in `positions` [B, P] a position of the row stands, -1 where it does not."""
    batch, count = positions.shape
    rows = jnp.arange(batch)[:, None]
    inside = (positions >= 0) & (positions < length)
    index = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), positions.shape)
    blank = jnp.full((batch, length), -1, jnp.int32)
    # Equal positions hold equal tokens, hence equal keys: any of them will do, the last one by this rule.
    return blank.at[rows, jnp.where(inside, positions, length)].max(index, mode="drop")


def _merge(old: jax.Array, new: jax.Array, source: jax.Array) -> jax.Array:
    """`old` [B, L, K, H] with the rows of `new` [B, P, K, H] that `source` [B, L] names."""
    fresh = jnp.take_along_axis(new, jnp.maximum(source, 0)[..., None, None], axis=1)
    return jnp.where((source >= 0)[..., None, None], fresh, old)
