"""How sure the model is of each position: float32 keys that rank like the float64 confidences of the published loops.

A probability saturates at 1.0 in float32. Its log-odds `l[x] - logsumexp(l without x)` have the same order and no ties;
the margin is ranked by the log-odds of its own value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_ENTROPY_EPS = 1e-10


def best_token(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest logit and its index, [..., V] → two [...]; ties go to the lowest index."""
    top = jnp.max(logits, axis=-1)
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    # Reducing twice beats argmax on CPU and fuses on accelerators. NaN rows match nowhere: stay in range.
    token = jnp.min(jnp.where(logits == top[..., None], ids, logits.shape[-1] - 1), axis=-1)
    return top, token


def log_odds(logits: jax.Array, token: jax.Array, top: jax.Array) -> jax.Array:
    """log p(token) / (1 - p(token)) under softmax(logits); logits [..., V], token and top = max(logits) [...]."""
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    others = jnp.sum(jnp.where(ids == token[..., None], 0.0, jnp.exp(logits - top[..., None])), axis=-1)
    return (chosen - top) - jnp.log(others)


def margin_log_odds(logits: jax.Array, best: jax.Array, top: jax.Array) -> jax.Array:
    """log m / (1 - m) of the margin m = p₁ - p₂ between the two best tokens; arguments as in `log_odds`."""
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    rest = jnp.where(ids == best[..., None], -jnp.inf, logits)
    gap = jnp.max(rest, axis=-1) - top
    others = jnp.sum(jnp.exp(rest - top[..., None]), axis=-1)
    return jnp.log(-jnp.expm1(gap)) - jnp.log(others + jnp.exp(gap))


def negative_entropy(logits: jax.Array, best: jax.Array, top: jax.Array) -> jax.Array:
    """Σ p·log(p + 1e-10) in nats; arguments as in `log_odds`.

    The best token's term is taken from what the others leave over, which float32 resolves where p rounds to 1.
    """
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    weight = jnp.where(ids == best[..., None], 0.0, jnp.exp(logits - top[..., None]))
    others = jnp.sum(weight, axis=-1)
    p = weight / (1.0 + others)[..., None]
    spread = jnp.sum(p * jnp.log(p + _ENTROPY_EPS), axis=-1)
    return spread + jnp.log1p(_ENTROPY_EPS - others / (1.0 + others)) / (1.0 + others)


def ranking_key(algorithm: str, logits: jax.Array, token: jax.Array) -> jax.Array:
    """The key [...] that ranks positions by `algorithm`, higher = surer; logits [..., V], chosen token [...].

    low_confidence looks at the chosen token, topprob and margin at the best ones, entropy at all. "random" is not
    decided by logits and gets zeros.
    """
    if algorithm == "random":
        return jnp.zeros(logits.shape[:-1], jnp.float32)
    top, best = best_token(logits)
    if algorithm == "low_confidence":
        return log_odds(logits, token, top)
    if algorithm == "topprob":
        return log_odds(logits, best, top)
    if algorithm == "margin":
        return margin_log_odds(logits, best, top)
    return negative_entropy(logits, best, top)


def confidence(algorithm: str, key: jax.Array) -> jax.Array:
    """The confidence that a ranking key stands for: a probability, a difference of two, or a negative entropy."""
    return key if algorithm in ("entropy", "random") else jax.nn.sigmoid(key)
