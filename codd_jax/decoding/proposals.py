"""From logits to a proposal per position: a token and how sure the model is of it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from codd_jax.decoding import randomness
from codd_jax.decoding.filters import filter_logits
from codd_jax.decoding.scores import best_token, confidence, ranking_key
from codd_jax.decoding.strategy import Numbers, Strategy

# Positions whose logits are held at once where a whole canvas is ranked: 64 x 152,064 float32 are 39 MB a row.
CHUNK = 64


class Proposal(NamedTuple):
    """What a step would write; all [B, P].

    Attributes:
      token: int32. key: float32, ranks by `remasking` (see `scores`). window_key: ranks by `window_remasking`, from
      the backbone's plain logits. finite: bool, whether the logits were free of NaN and +inf.
    """

    token: jax.Array
    key: jax.Array
    window_key: jax.Array
    finite: jax.Array


def propose(logits: jax.Array, positions: jax.Array, keys: jax.Array, strategy: Strategy, numbers: Numbers) -> Proposal:
    """Draws a token for every position and scores it.

    logits [B, P, V] float32, absolute positions [B, P], step keys [B]. At temperature 0 without filters the draw is
    the best token (lowest index on ties). LLaDA's sampler adds temperature-scaled Gumbel noise and scores the plain
    logits; Dream's scores the tempered, filtered logits that it draws from.
    """
    plain = (numbers.temperature <= 0) & (numbers.top_p >= 1) & (numbers.top_k <= 0)
    top, best = best_token(logits)
    token, key = lax.cond(
        plain,
        lambda: (best, ranking_key(strategy.remasking, logits, best)),
        lambda: _draw(logits, positions, keys, strategy, numbers),
    )
    window_key = key
    if strategy.windows is not None:
        window_key = ranking_key(strategy.window_remasking, logits, best)
    return Proposal(token, key, window_key, jnp.isfinite(top))


def _draw(logits, positions, keys, strategy: Strategy, numbers: Numbers) -> tuple[jax.Array, jax.Array]:
    """The tempered, filtered draw and its key, two [B, P]."""
    warm = numbers.temperature > 0
    tempered = filter_logits(logits / jnp.where(warm, numbers.temperature, 1.0), numbers.top_p, numbers.top_k)
    noise = randomness.token_gumbel(keys, positions, logits.shape[-1])
    token = best_token(tempered + jnp.where(warm, noise, 0.0))[1]
    # topprob looks at the backbone's or circuit's own distribution, whatever the draw is restricted to.
    scored = logits if strategy.sampler == "gumbel" or strategy.remasking == "topprob" else tempered
    return token, ranking_key(strategy.remasking, scored, token)


def draw_token(logits: jax.Array, key: jax.Array, numbers: Numbers) -> jax.Array:
    """[] int32: one token from logits [V], tempered and filtered; the best one at temperature 0."""
    warm = numbers.temperature > 0
    tempered = filter_logits(logits / jnp.where(warm, numbers.temperature, 1.0), numbers.top_p, numbers.top_k)
    noise = jax.random.gumbel(key, logits.shape, jnp.float32)
    return best_token(tempered + jnp.where(warm, noise, 0.0))[1]


def propose_in_chunks(read, positions: jax.Array, keys: jax.Array, strategy: Strategy, numbers: Numbers) -> Proposal:
    """`propose` for many positions [B, P] without ever holding the logits of more than `CHUNK` of them.

    read: positions [B, C] → logits [B, C, V].
    """
    batch, count = positions.shape
    chunks = -(-count // CHUNK)
    padded = jnp.pad(positions, ((0, 0), (0, chunks * CHUNK - count)), mode="edge")
    pieces = padded.reshape(batch, chunks, CHUNK).swapaxes(0, 1)
    parts = lax.map(lambda piece: propose(read(piece), piece, keys, strategy, numbers), pieces)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(batch, -1)[:, :count], parts)


def order_keys(
    proposal: Proposal, positions: jax.Array, keys: jax.Array, strategy: Strategy, numbers: Numbers
) -> jax.Array:
    """[B, P] float32, what positions are ranked by: the key, or with `alg_temp` a draw without replacement.

    Adding Gumbel noise to confidence / alg_temp and taking the best k draws k positions one after the other from
    softmax(confidence / alg_temp), as Dream does. Random ranking is the noise alone.
    """
    return _ordered(strategy.remasking, proposal.key, positions, keys, numbers.alg_temp)


def window_order_keys(
    proposal: Proposal, positions: jax.Array, keys: jax.Array, strategy: Strategy, numbers: Numbers
) -> jax.Array:
    """`order_keys` by `window_remasking`: what windows are laid over."""
    return _ordered(strategy.window_remasking, proposal.window_key, positions, keys, numbers.alg_temp)


def _ordered(algorithm: str, key: jax.Array, positions, keys, alg_temp) -> jax.Array:
    if algorithm == "random":
        return randomness.order_gumbel(keys, positions)
    return lax.cond(
        alg_temp > 0,
        lambda: confidence(algorithm, key) / alg_temp + randomness.order_gumbel(keys, positions),
        lambda: key,
    )
