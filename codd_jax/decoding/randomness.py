"""Where randomness comes from: a key per row and step, and from it one draw per purpose and absolute position.

A draw therefore depends neither on batch mates, nor on padding, nor on which positions share a program.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

TOKEN, ORDER, LATENT, ANY_ORDER = range(4)
# Purpose and position share one word: positions stay below 2^24.
_PURPOSE_SHIFT = 24


def step_keys(row_keys: jax.Array, steps: jax.Array) -> jax.Array:
    """[B] keys of one denoising step from the rows' keys [B] and their planned step numbers [B]."""
    return jax.vmap(jax.random.fold_in)(row_keys, steps)


def position_keys(keys: jax.Array, positions: jax.Array, purpose: int) -> jax.Array:
    """Keys [B, ...] for one of TOKEN, ORDER, LATENT, ANY_ORDER at absolute positions [B, ...], from step keys [B]."""
    words = positions | (purpose << _PURPOSE_SHIFT)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0)) if words.ndim == 2 else jax.random.fold_in
    return jax.vmap(fold)(keys, words)


def token_gumbel(keys: jax.Array, positions: jax.Array, vocab_size: int) -> jax.Array:
    """[B, P, V] standard Gumbel noise for the token draw of each position [B, P]."""
    each = position_keys(keys, positions, TOKEN)
    return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,), jnp.float32)))(each)


def order_gumbel(keys: jax.Array, positions: jax.Array) -> jax.Array:
    """[B, P] standard Gumbel noise for drawing or shuffling positions."""
    each = position_keys(keys, positions, ORDER)
    return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (), jnp.float32)))(each)
