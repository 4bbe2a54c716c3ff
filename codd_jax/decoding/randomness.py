"""Where randomness comes from: a key per row, step and purpose, and from it one draw per absolute position.

A draw therefore depends neither on batch mates, nor on padding, nor on which positions share a program.
"""

from __future__ import annotations

import jax

TOKEN, ORDER, LATENT, ANY_ORDER = range(4)


def step_keys(row_keys: jax.Array, steps: jax.Array) -> jax.Array:
    """[B] keys of one denoising step from the rows' keys [B] and their planned step numbers [B]."""
    return jax.vmap(jax.random.fold_in)(row_keys, steps)


def purpose_keys(keys: jax.Array, purpose: int) -> jax.Array:
    """[B] keys for one of TOKEN, ORDER, LATENT, ANY_ORDER."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, purpose)


def position_keys(keys: jax.Array, positions: jax.Array) -> jax.Array:
    """[B, P] keys from keys [B] and absolute positions [B, P]."""
    return jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))(keys, positions)


def token_gumbel(keys: jax.Array, positions: jax.Array, vocab_size: int) -> jax.Array:
    """[B, P, V] standard Gumbel noise for the token draw of each position."""
    each = position_keys(purpose_keys(keys, TOKEN), positions)
    return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,))))(each)


def order_gumbel(keys: jax.Array, positions: jax.Array) -> jax.Array:
    """[B, P] standard Gumbel noise for drawing or shuffling positions."""
    each = position_keys(purpose_keys(keys, ORDER), positions)
    return jax.vmap(jax.vmap(jax.random.gumbel))(each)
