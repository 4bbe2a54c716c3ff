"""The training objective: the conditional log-likelihood of a window's masked tokens (CoDD, sections 4.3 and 6.2)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from codd_jax.circuits.context import Latent, check_context, log_latent_of
from codd_jax.circuits.hmm import HMM, NORMALIZATIONS
from codd_jax.circuits.messages import (
    check_window,
    known_leaf_values,
    log_partition_from_leaf,
    masked_leaf_values,
)
from codd_jax.circuits.posterior import divide


@functools.partial(jax.jit, static_argnames="normalization")
def conditional_log_likelihood(
    hmm: HMM, log_phi, tokens, known, normalization: str = "global", log_latent: Latent = None
) -> jax.Array:
    """log p̂(x_M | x_K) of one window in nats; differentiable in the circuit, φ and g.

    Args:
      hmm: the circuit; `normalization` overrides its own, so pass `hmm.normalization` to keep it.
      log_phi: [T, V] log-potentials of the backbone.
      tokens: [T] int, all positions observed. known: [T] bool, K; the other positions are M.
      normalization: "global" divides the product of circuit and φ by Z; "local" renormalises each masked emission
        under φ and divides by the evidence of x_K.
      log_latent: optional [T, H] latent potentials, in numerator and denominator, or a `Context`.

    Returns:
      A scalar; -inf, with zero gradients, where the tokens or the evidence are impossible.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is {normalization!r}; it must be one of {', '.join(NORMALIZATIONS)}")
    check_window(hmm, log_phi, tokens, known)
    check_context(log_latent, hmm.length, hmm.num_states)
    observed = known_leaf_values(hmm, tokens, log_latent)
    masked = masked_leaf_values(hmm, log_phi, ~known, log_latent)
    chosen = jnp.take_along_axis(log_phi, jnp.clip(tokens, 0, hmm.vocab_size - 1)[:, None], axis=-1)[:, 0]
    potential = jnp.sum(jnp.where(known, 0, chosen.astype(observed.dtype)))
    if normalization == "global":
        numerator, denominator = observed, jnp.where(known[:, None], observed, masked)
    else:
        numerator = jnp.where(known[:, None], observed, divide(observed, masked))
        denominator = jnp.where(known[:, None], observed, 0)
    leaves = jnp.stack([numerator, denominator])
    # Both chains run in one scan: the steps are bound by launches, not by arithmetic.
    joint, evidence = log_partition_from_leaf(hmm, leaves, log_latent_of(log_latent))
    total = joint + potential
    possible = (total > -jnp.inf) & (evidence > -jnp.inf)
    return jnp.where(possible, jnp.where(possible, total, 0) - jnp.where(possible, evidence, 0), -jnp.inf)


@jax.jit
def log_likelihood(hmm: HMM, tokens, log_latent: Latent = None) -> jax.Array:
    """log p(x) of a fully observed window [T] under the circuit alone, with g in the sum over latents if given."""
    return log_partition_from_leaf(hmm, known_leaf_values(hmm, tokens, log_latent), log_latent)
