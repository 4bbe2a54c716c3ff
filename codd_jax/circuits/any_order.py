"""Any-order autoregressive sampling: masked tokens of a window drawn one by one, each known to the next (CoDD, 5.1).

The position is chosen before its token is drawn. Choosing by the probability of a drawn token would bias the joint;
this way, at temperature 1 and with nothing filtered, the tokens are an exact draw from the coupled distribution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from codd_jax.circuits import logspace
from codd_jax.circuits.context import Context, Latent
from codd_jax.circuits.hmm import HMM
from codd_jax.circuits.messages import known_leaf_values, leaf_values, masked_leaf_values
from codd_jax.circuits.posterior import conditional_rows, divide, site_weights

ORDERS = ("confidence", "margin", "entropy", "random")
# (key, log-probabilities [V]) → token and score, or log-probabilities [K, V] → priority [K].
Draw = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
Order = Callable[[jax.Array], jax.Array]


class AnyOrderDraw(NamedTuple):
    """What was drawn, per position of the window.

    Attributes:
      tokens: [T] int32, the given tokens with the drawn ones filled in.
      drawn: [T] bool.
      scores: [T] score of each drawn token when it was drawn (see `sample_any_order`), -inf elsewhere.
      log_probs: [T] log-probability of each drawn token given all that was known then, 0 elsewhere; under the default
        draw their sum is the log-probability of the drawn tokens in this order.
      ranks: [T] int32, the how-manieth draw filled the position; T elsewhere.
      possible: [] bool, false where the evidence was impossible; nothing is drawn then.
    """

    tokens: jax.Array
    drawn: jax.Array
    scores: jax.Array
    log_probs: jax.Array
    ranks: jax.Array
    possible: jax.Array


def log_odds(log_probs: jax.Array, token: jax.Array) -> jax.Array:
    """log p(token) / (1 - p(token)) for rows [..., V] and tokens [...]: ranks like p, without saturating at 1.

    A certain token gets 1e30, an impossible one -inf.
    """
    chosen = jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
    others = jnp.where(jnp.arange(log_probs.shape[-1]) == token[..., None], -jnp.inf, log_probs)
    return chosen - jnp.maximum(logspace.logsumexp(others), -1e30)


def priorities(log_probs: jax.Array, order: str) -> jax.Array:
    """How sure each row [..., V] of log-probabilities is, larger = sooner; "confidence", "margin" or "entropy"."""
    if order == "confidence":
        return log_odds(log_probs, best_token(log_probs))
    if order == "margin":
        best = best_token(log_probs)
        runner_up = jnp.max(jnp.where(jnp.arange(log_probs.shape[-1]) == best[..., None], -jnp.inf, log_probs), -1)
        return jnp.exp(jnp.max(log_probs, axis=-1)) - jnp.exp(runner_up)
    p = jnp.exp(log_probs)
    return jnp.sum(jnp.where(p > 0, p * log_probs, 0), axis=-1)


def best_token(log_probs: jax.Array) -> jax.Array:
    """The most probable token of each row [..., V], the lowest index among equals, [...] int32."""
    ids = jnp.arange(log_probs.shape[-1], dtype=jnp.int32)
    top = jnp.max(log_probs, axis=-1, keepdims=True)
    # Two reductions beat argmax on CPU and fuse on accelerators; the bound keeps NaN rows in range.
    return jnp.min(jnp.where(log_probs == top, ids, log_probs.shape[-1] - 1), axis=-1)


def gumbel_draw(temperature: jax.Array | float) -> Draw:
    """A draw from the row sharpened by `temperature` (0: the most probable token), scored by its log-odds."""

    def draw(key, log_probs):
        noise = temperature * jax.random.gumbel(key, log_probs.shape, log_probs.dtype)
        noisy = jnp.where(log_probs > -jnp.inf, log_probs + noise, -jnp.inf)
        token = best_token(noisy)
        return token, log_odds(log_probs, token)

    return draw


@functools.partial(jax.jit, static_argnames=("order", "max_targets", "draw"))
def sample_any_order(
    hmm: HMM,
    log_phi,
    tokens,
    known,
    key,
    targets=None,
    num_tokens=None,
    *,
    order: str | Order = "confidence",
    temperature=1.0,
    draw: Draw | None = None,
    max_targets: int | None = None,
    log_latent: Latent = None,
) -> AnyOrderDraw:
    """Draws masked tokens of one window one by one from the exact single-site conditionals.

    Args:
      hmm: the circuit. log_phi: [T, V] log-potentials. tokens, known: [T].
      key: one typed PRNG key; the draw at position t uses fold_in(key, t).
      targets: [T] bool, the positions that may be drawn (default: every masked one); known positions never are.
      num_tokens: draw at most so many of the targets, traced (default: all of them).
      order: which target is next: the surest by "confidence" (largest probability), "margin" or "entropy", or
        "random"; or a function of log-conditionals [K, V] → [K], larger = sooner.
      temperature: of the draw, traced; 0 takes the most probable token.
      draw: replaces the default draw: (key, log-conditionals [V]) → (token, score), a hashable function.
      max_targets: static bound: only so many targets, the leftmost open ones, compete for the next draw, and the
        conditionals are computed for so many rows only. Exact where it is at least the number of targets.
      log_latent: optional [T, H], or a `Context`.

    Returns:
      An `AnyOrderDraw`. By default the score of a token is its log-odds before `temperature`.
    """
    leaf = leaf_values(hmm, log_phi, tokens, known, log_latent)
    draw = gumbel_draw(temperature) if draw is None else draw
    return sample_any_order_from_leaf(
        hmm, log_phi, leaf, tokens, known, key, targets, num_tokens, order, draw, max_targets, log_latent
    )


def sample_any_order_from_leaf(
    hmm: HMM,
    log_phi: jax.Array,
    leaf: jax.Array,
    tokens: jax.Array,
    known: jax.Array,
    key: jax.Array,
    targets: jax.Array | None,
    num_tokens: jax.Array | int | None,
    order: str | Order,
    draw: Draw,
    max_targets: int | None = None,
    log_latent: Latent = None,
) -> AnyOrderDraw:
    """`sample_any_order` with leaf values [T, H] that the caller has; not jitted, so `draw` may close over tracers."""
    if isinstance(order, str) and order not in ORDERS:
        raise ValueError(f"order is {order!r}; it must be one of {', '.join(ORDERS)}, or a function")
    length = hmm.length
    targets = ~known if targets is None else targets & ~known
    count = jnp.sum(targets) if num_tokens is None else jnp.minimum(jnp.sum(targets), num_tokens)
    rows = length if max_targets is None else max(1, min(max_targets, length))
    masked = masked_leaf_values(hmm, log_phi, None, log_latent) if hmm.normalization == "local" else None
    keys = jax.vmap(lambda t: jax.random.fold_in(key, t))(jnp.arange(length))
    shuffle = jax.random.uniform(jax.random.fold_in(key, length), (length,))

    def one(rank, carry):
        state, leaf = carry
        log_w = site_weights(hmm, leaf, log_latent)
        log_w = log_w if masked is None else divide(log_w, masked)
        position, row = _next_row(hmm, log_phi, log_w, targets & ~state.drawn, order, shuffle, rows, log_latent)
        token, score = draw(keys[position], row)
        possible = state.possible & (row[token] > -jnp.inf)
        here = (jnp.arange(length) == position) & possible
        new = (token.astype(jnp.int32), True, score.astype(leaf.dtype), row[token], rank)
        filled = [jnp.where(here, value, old) for value, old in zip(new, state[:-1], strict=True)]
        hard = known_leaf_values(hmm, filled[0], log_latent)
        hard = hard if masked is None else divide(hard, masked)
        return AnyOrderDraw(*filled, possible), jnp.where(here[:, None], hard, leaf)

    # Built from the inputs, so that under shard_map the carry varies over the same mesh axes.
    state = AnyOrderDraw(
        tokens=tokens.astype(jnp.int32),
        drawn=jnp.zeros_like(known),
        scores=jnp.full_like(leaf[:, 0], -jnp.inf),
        log_probs=jnp.zeros_like(leaf[:, 0]),
        ranks=jnp.full_like(tokens, length, jnp.int32),
        possible=jnp.ones_like(known[0]),
    )
    return lax.fori_loop(0, count.astype(jnp.int32), one, (state, leaf))[0]


def _next_row(hmm, log_phi, log_w, open_, order, shuffle, rows: int, context: Latent):
    """The open position that comes next and its log-conditionals [V]; only `rows` rows are computed."""
    if order == "random":
        position = jnp.argmax(jnp.where(open_, shuffle, -1.0)).astype(jnp.int32)
        return position, _rows_at(hmm, log_phi, log_w, position[None], context)[0]
    chosen = jnp.nonzero(open_, size=rows, fill_value=0)[0].astype(jnp.int32) if rows < hmm.length else None
    at = jnp.arange(hmm.length, dtype=jnp.int32) if chosen is None else chosen
    if chosen is None:
        log_probs = conditional_rows(hmm, log_phi, log_w, None, context)
    else:
        log_probs = _rows_at(hmm, log_phi, log_w, chosen, context)
    priority = order(log_probs) if callable(order) else priorities(log_probs, order)
    # A row that cannot be ranked (impossible evidence) is still an open position; closed ones must not tie with it.
    priority = jnp.where(open_[at], jnp.maximum(priority, jnp.finfo(priority.dtype).min), -jnp.inf)
    best = jnp.argmax(priority)
    return at[best], log_probs[best]


def _rows_at(hmm: HMM, log_phi: jax.Array, log_w: jax.Array, at: jax.Array, context: Latent) -> jax.Array:
    """Log-conditionals [K, V] of the positions `at` [K]."""
    emission = hmm.emission if hmm.emission.ndim == 2 else hmm.emission[at]
    context = context.at(at) if isinstance(context, Context) else None
    return conditional_rows(hmm, log_phi[at], log_w[at], emission, context)
