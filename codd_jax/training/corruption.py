"""The forward process of masked diffusion: which tokens of a window are hidden (LLaDA, arXiv:2502.09992, Eq. 6)."""

import jax
import jax.numpy as jnp


def stratified_counts(key: jax.Array, batch: int, length: int, least: int = 1) -> jax.Array:
    """How many tokens to hide in each window: [batch] int32, each uniform over least … length.

    One count comes from every `batch`-th of that range: the expectation of a loss stays, most of its variance goes.
    """
    if not 1 <= least <= length:
        raise ValueError(f"the least number of hidden tokens is {least}; it must be from 1 to the length, {length}")
    order_key, offset_key = jax.random.split(key)
    uniform = (jax.random.permutation(order_key, batch) + jax.random.uniform(offset_key, (batch,))) / batch
    counts = least + jnp.floor(uniform * (length - least + 1)).astype(jnp.int32)
    return jnp.minimum(counts, length)  # the product may round up to the end of the range


def corrupt(key: jax.Array, tokens: jax.Array, counts: jax.Array, mask_id: int) -> tuple[jax.Array, jax.Array]:
    """Hide exactly counts[b] tokens of window b, chosen evenly.

    Args:
      key: typed PRNG key.
      tokens: [batch, length] int32, the clean tokens of the windows.
      counts: [batch] int32.
      mask_id: what stands in for a hidden token.

    Returns:
      The corrupted tokens [batch, length] and which of them are hidden, [batch, length] bool.
    """
    order = jnp.argsort(jnp.argsort(jax.random.uniform(key, tokens.shape), axis=1), axis=1)
    masked = order < counts[:, None]
    return jnp.where(masked, mask_id, tokens), masked
