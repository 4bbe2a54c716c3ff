"""Top-p and top-k filters with traced bounds, found by bisection instead of sorting the vocabulary.

A sort of [512, 152,064] logits costs more than a backbone's step; 32 halvings of the order of float32 read the logits
32 times and are exact.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

NEG_INF = float("-inf")


def filter_logits(logits: jax.Array, top_p: jax.Array, top_k: jax.Array) -> jax.Array:
    """Logits [..., V] with everything outside the nucleus and the best `top_k` set to -inf.

    top_p: the shortest run of best tokens whose probability exceeds it, equal logits by lowest index; >= 1 is off.
    top_k: tokens at least as good as the k-th best (ties stay); 0 is off. The nucleus is taken first, of the whole
    distribution. Without effect both cost nothing but the comparison.
    """
    nucleus = lax.cond(top_p < 1.0, _nucleus, lambda l, _: jnp.ones(l.shape, bool), logits, top_p)
    best = lax.cond(top_k > 0, _best, lambda l, _: jnp.ones(l.shape, bool), logits, top_k)
    return jnp.where(nucleus & best, logits, NEG_INF)


def _nucleus(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Mask of the tokens whose better ones have at most `top_p` of the probability together."""
    probs = jax.nn.softmax(logits, axis=-1)
    order = _ordered(logits)

    def mass_above(bound):
        return jnp.sum(jnp.where(order > bound[..., None], probs, 0.0), axis=-1)

    bound = _lowest(lambda bound: mass_above(bound) <= top_p, logits.shape[:-1])[..., None]
    tied = order == bound
    before = mass_above(bound[..., 0])[..., None] + (jnp.cumsum(tied, axis=-1) - tied) * probs
    return (order > bound) | (tied & (before <= top_p))


def _best(logits: jax.Array, top_k: jax.Array) -> jax.Array:
    """Mask of the tokens that fewer than `top_k` tokens beat."""
    order = _ordered(logits)
    bound = _lowest(lambda bound: jnp.sum(order > bound[..., None], axis=-1) < top_k, logits.shape[:-1])
    return order >= bound[..., None]


def _ordered(values: jax.Array) -> jax.Array:
    """int32 with the order of float32 `values`; -0.0 counts as 0.0."""
    # Adding 0.0 would do it, but compilers drop that.
    bits = lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _lowest(holds, shape: tuple[int, ...]) -> jax.Array:
    """The lowest int32 per entry at which the monotone predicate `holds` is true."""
    low = jnp.full(shape, jnp.iinfo(jnp.int32).min)
    high = jnp.full(shape, jnp.iinfo(jnp.int32).max)

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)
        ok = holds(middle)
        return jnp.where(ok, low, jnp.minimum(middle, high - 1) + 1), jnp.where(ok, middle, high)

    return lax.fori_loop(0, 32, halve, (low, high))[1]
