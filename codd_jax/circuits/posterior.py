"""What is drawn from or read off the coupled distribution: marginals, single-site conditionals, latents, tokens.

CoDD sections 5.1 and appendix C. Functions with a public name take one window; `*_from_leaf` take leading batch
dimensions where they say so and reuse leaf values that the caller already has.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from codd_jax.circuits import logspace
from codd_jax.circuits.chain import Chain
from codd_jax.circuits.context import Latent, basis_share, emission_change, log_latent_of, log_mass, mixed_rows
from codd_jax.circuits.hmm import HMM
from codd_jax.circuits.messages import (
    backward_chain,
    check_window,
    forward_chain,
    known_leaf_values,
    leaf_values,
    log_partition_of,
    masked_leaf_values,
)


@jax.jit
def posterior_marginals(hmm: HMM, log_phi, tokens, known, log_latent=None) -> jax.Array:
    """p(z_t | evidence) for log_phi [T, V], tokens [T], known [T] and optional log_latent [T, H] → [T, H].

    Rows sum to one, or are zero under impossible evidence. A locally normalised circuit sees the known tokens only.
    """
    return posterior_marginals_from_leaf(hmm, leaf_values(hmm, log_phi, tokens, known, log_latent), log_latent)


def posterior_marginals_from_leaf(hmm: HMM, leaf: jax.Array, log_latent: Latent = None) -> jax.Array:
    """`posterior_marginals` from leaf values [..., T, H] → [..., T, H]."""
    forward, backward = forward_chain(hmm, leaf, log_latent), backward_chain(hmm, leaf, log_latent)
    return jnp.exp(logspace.log_normalize(forward.post + backward.prior))


@jax.jit
def conditionals(hmm: HMM, log_phi, tokens, known, log_latent=None) -> jax.Array:
    """log p(x_t = v | the evidence at all other positions, φ_t) for every position, [T, V].

    Args:
      log_phi: [T, V] log-potentials; those of known positions enter their own row alone.
      tokens, known: [T]; log_latent: optional [T, H] or a `Context`.

    Returns:
      Normalised rows; -inf throughout where the evidence at the other positions is impossible. A probability that
      underflows float32 may come out as -inf.
    """
    return conditionals_from_leaf(hmm, log_phi, leaf_values(hmm, log_phi, tokens, known, log_latent), log_latent)


def conditionals_from_leaf(
    hmm: HMM,
    log_phi: jax.Array,
    leaf: jax.Array,
    log_latent: Latent = None,
    masked_leaf: jax.Array | None = None,
) -> jax.Array:
    """`conditionals` from log_phi [..., T, V] and leaf values [..., T, H] → [..., T, V].

    `masked_leaf` [..., T, H] is used by locally normalised circuits alone, which divide by it, and is computed there
    when it is not given.
    """
    log_w = site_weights(hmm, leaf, log_latent)
    if hmm.normalization == "local":
        masked = masked_leaf_values(hmm, log_phi, None, log_latent) if masked_leaf is None else masked_leaf
        log_w = divide(log_w, masked)
    return conditional_rows(hmm, log_phi, log_w, None, log_latent)


def site_weights(hmm: HMM, leaf: jax.Array, log_latent: Latent = None) -> jax.Array:
    """log w_t(z), the log-posterior of z_t given all evidence but that of t, up to a constant, [..., T, H]."""
    log_w = forward_chain(hmm, leaf, log_latent).prior + backward_chain(hmm, leaf, log_latent).prior
    latent = log_latent_of(log_latent)
    return log_w if latent is None else log_w + latent


def conditional_rows(
    hmm: HMM, log_phi: jax.Array, log_w: jax.Array, emission: jax.Array | None = None, context: Latent = None
) -> jax.Array:
    """log-normalised φ_t(v) Σ_z w_t(z) E[z,v], [..., T, V] and [..., T, H] → [..., T, V].

    `emission` replaces the circuit's own, for rows that are not the positions 0..T-1 in order; the `context` is that of
    the rows.
    """
    emission = hmm.emission if emission is None else emission
    change = emission_change(context)
    log_w = log_w if change is None else log_w - log_mass(change)
    log_phi = log_phi.astype(log_w.dtype)
    prior = lax.stop_gradient(log_phi)
    if emission.ndim == 2:
        mixed = logspace.log_matmul(log_w, emission, 0, None, prior)
    else:
        product = jax.vmap(lambda w, e, p: logspace.log_matmul(w, e, 0, None, p), in_axes=(-2, 0, -2), out_axes=-2)
        mixed = product(log_w, emission, prior)
    if change is not None:
        mixed = jnp.logaddexp(mixed, basis_share(log_w, prior, change))
    return logspace.log_normalize(mixed + log_phi)


def divide(log_x: jax.Array, log_y: jax.Array) -> jax.Array:
    """log(x / y) with 0 / 0 = 0 where y is 0."""
    possible = log_y > -jnp.inf
    return jnp.where(possible, log_x - jnp.where(possible, log_y, 0), -jnp.inf)


@jax.jit
def sample_latents(hmm: HMM, log_phi, tokens, known, key, log_latent=None) -> jax.Array:
    """Draws z ~ p(z | evidence) by backward filtering and forward sampling, [T] int32.

    In this direction both the messages and the draws read the transition along its rows.

    Args:
      log_phi: [T, V] (None: φ ≡ 1), tokens: [T], known: [T], log_latent: optional [T, H] or a `Context`.
      key: one typed PRNG key; position t uses fold_in(key, t).

    Under impossible evidence (log_partition = -inf) the states mean nothing; they are within range.
    """
    return sample_latents_from_leaf(hmm, leaf_values(hmm, log_phi, tokens, known, log_latent), key, log_latent)


def sample_latents_from_leaf(hmm: HMM, leaf: jax.Array, key: jax.Array, log_latent: Latent = None) -> jax.Array:
    """`sample_latents` from leaf values [T, H] → [T]; `vmap` over leaf and key for a batch."""
    return sample_latents_from_chain(hmm, backward_chain(hmm, leaf, log_latent), key)


def sample_latents_and_partition(hmm: HMM, leaf: jax.Array, key: jax.Array, log_latent=None):
    """(latents [T], log Z) from leaf values [T, H] with one pass, for callers that must notice log Z = -inf."""
    backward = backward_chain(hmm, leaf, log_latent)
    return sample_latents_from_chain(hmm, backward, key), log_partition_of(hmm, backward)


def sample_latents_from_chain(hmm: HMM, backward: Chain, key: jax.Array) -> jax.Array:
    """Forward sampling along a backward chain of one window → [T] int32."""
    length, states = backward.post.shape
    noisy = backward.post + position_gumbel(key, length, states, backward.post.dtype)
    first = jnp.argmax(logspace.safe_log(hmm.initial) + noisy[0]).astype(jnp.int32)
    tied = hmm.transition.ndim == 2

    def step(previous, xs):
        values, matrix = xs
        row = (hmm.transition if tied else matrix)[previous].astype(values.dtype)
        state = jnp.argmax(logspace.safe_log(row) + values).astype(jnp.int32)
        return state, state

    rest = lax.scan(step, first, (noisy[1:], None if tied else hmm.transition))[1]
    return jnp.concatenate([first[None], rest])


def position_gumbel(key: jax.Array, length: int, width: int, dtype=jnp.float32) -> jax.Array:
    """Standard Gumbel noise [length, width], row t from fold_in(key, t): rows do not depend on what surrounds them."""
    keys = jax.vmap(lambda t: jax.random.fold_in(key, t))(jnp.arange(length))
    return jax.vmap(lambda k: jax.random.gumbel(k, (width,), dtype))(keys)


@jax.jit
def sample(hmm: HMM, key: jax.Array, tokens=None, known=None, log_latent=None) -> jax.Array:
    """Draws a window from the circuit itself (φ ≡ 1), given the known tokens if any (appendix C), [T] int32.

    Args:
      key: one typed PRNG key.
      tokens, known: [T], both or neither; known tokens are kept.
      log_latent: optional [T, H] or a `Context`.

    Under impossible evidence the drawn tokens mean nothing; `log_partition(hmm, None, tokens, known)` tells.
    """
    if (tokens is None) != (known is None):
        raise ValueError("tokens and known belong together; one of them is None")
    if tokens is None:
        tokens, known = jnp.zeros(hmm.length, jnp.int32), jnp.zeros(hmm.length, bool)
    check_window(hmm, None, tokens, known)
    latent_key, token_key = jax.random.split(key)
    leaf = jnp.where(known[:, None], known_leaf_values(hmm, tokens, log_latent), 0)
    latents = sample_latents_from_leaf(hmm, leaf, latent_key, log_latent)
    rows = emission_rows(hmm, latents, log_latent)
    noise = position_gumbel(token_key, hmm.length, hmm.vocab_size, rows.dtype)
    drawn = jnp.argmax(logspace.safe_log(rows) + noise, axis=-1).astype(jnp.int32)
    return jnp.where(known, tokens, drawn).astype(jnp.int32)


def emission_rows(hmm: HMM, latents: jax.Array, context: Latent = None) -> jax.Array:
    """E[z_t, :] for latents [T] → probabilities [T, V] in float32, changed by the context if that says so."""
    rows = hmm.emission[latents] if hmm.emission.ndim == 2 else hmm.emission[jnp.arange(hmm.length), latents]
    rows = rows.astype(logspace.compute_dtype(hmm.initial))
    change = emission_change(context)
    return rows if change is None else mixed_rows(rows, latents, change)


@jax.jit
def latent_logits(hmm: HMM, log_phi: jax.Array, latents: jax.Array, context: Latent = None) -> jax.Array:
    """log φ_t(v) + log E[z_t, v], the coupled logits given latents [T] and log_phi [T, V] → [T, V] (section 5.1)."""
    return log_phi + logspace.safe_log(emission_rows(hmm, latents, context))
