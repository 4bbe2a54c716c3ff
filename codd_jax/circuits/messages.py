"""Leaf values and messages: the evidence of a window turned into a log partition (CoDD, appendix D).

`E` is held in the linear domain, so a leaf is one matrix product and the messages are scans of small ones.
Functions with a public name take one window; those that say [...] take leading batch dimensions as well as `vmap`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from codd_jax.circuits import logspace
from codd_jax.circuits.chain import Chain, exact_cumsum, run_chain
from codd_jax.circuits.context import (
    Latent,
    check_context,
    emission_change,
    log_latent_of,
    mixed_known_probabilities,
    mixed_masked_leaf,
)
from codd_jax.circuits.hmm import HMM


def leaf_values(
    hmm: HMM, log_phi: jax.Array | None, tokens: jax.Array, known: jax.Array, context: Latent = None
) -> jax.Array:
    """log-likelihood of the evidence at each position under each state, [..., T, H].

    Args:
      log_phi: [..., T, V] log-potentials, normalised or not, -inf allowed; None means φ ≡ 1.
      tokens: [..., T] int; read only where known. A token outside the vocabulary is impossible, not an error.
      known: [..., T] bool.
      context: changes the emissions if it is a `Context` with a mixture; latent potentials are no part of the leaves.

    Returns:
      Masked positions: log Σ_v E[z,v] φ_t(v), or 0 for a locally normalised circuit and without φ.
      Known positions: log E[z, x_t].
    """
    check_window(hmm, log_phi, tokens, known)
    check_context(context, hmm.length, hmm.num_states)
    if log_phi is None or hmm.normalization == "local":
        masked = jnp.zeros((), logspace.compute_dtype(hmm.initial))
    else:
        masked = masked_leaf_values(hmm, log_phi, ~known, context)
    return jnp.where(known[..., None], known_leaf_values(hmm, tokens, context), masked)


def masked_leaf_values(
    hmm: HMM, log_phi: jax.Array, wanted: jax.Array | None = None, context: Latent = None
) -> jax.Array:
    """log Σ_v E[z,v] φ_t(v) for every position, [..., T, V] → [..., T, H]; exact where float32 φ underflows.

    `wanted` [..., T] marks the positions whose values are used; the others may come out rough.
    """
    if hmm.emission.ndim == 2:
        own = logspace.log_matmul(log_phi, hmm.emission, 1, wanted)
    else:
        axes = (-2, 0, None if wanted is None else -1)
        product = jax.vmap(lambda x, e, w: logspace.log_matmul(x, e, 1, w), in_axes=axes, out_axes=-2)
        own = product(log_phi, hmm.emission, wanted)
    change = emission_change(context)
    return own if change is None else mixed_masked_leaf(own, log_phi, change, wanted)


def known_leaf_values(hmm: HMM, tokens: jax.Array, context: Latent = None) -> jax.Array:
    """log E[z, x_t] for every position, [..., T] → [..., T, H]; -inf for tokens outside the vocabulary."""
    inside = (tokens >= 0) & (tokens < hmm.vocab_size)
    index = jnp.where(inside, tokens, 0)
    if hmm.emission.ndim == 2:
        values = jnp.moveaxis(hmm.emission[:, index], 0, -1)
    else:
        values = jax.vmap(lambda e, i: e[:, i], in_axes=(0, -1), out_axes=0)(hmm.emission, index)
        values = jnp.moveaxis(jnp.moveaxis(values, 1, -1), 0, -2)
    values = values.astype(logspace.compute_dtype(hmm.initial))
    change = emission_change(context)
    values = values if change is None else mixed_known_probabilities(values, index, change)
    return logspace.safe_log(jnp.where(inside[..., None], values, 0))


def forward_chain(hmm: HMM, leaf: jax.Array, log_latent: Latent = None) -> Chain:
    """Forward messages from leaf values [..., T, H], shifted per position; the prior part is without g_t."""
    return run_chain(logspace.safe_log(hmm.initial), _with_latent(leaf, log_latent), hmm.transition)


def backward_chain(hmm: HMM, leaf: jax.Array, log_latent: Latent = None) -> Chain:
    """Backward messages from leaf values [..., T, H], shifted per position; `prior` is β_t up to a constant."""
    return run_chain(jnp.zeros_like(hmm.initial), _with_latent(leaf, log_latent), hmm.transition, reverse=True)


def forward_messages(hmm: HMM, leaf: jax.Array, log_latent: Latent = None) -> tuple[jax.Array, jax.Array]:
    """Forward messages as true log-values.

    Args:
      leaf: [..., T, H] leaf values.
      log_latent: optional [..., T, H] latent potentials g, or a `Context`.

    Returns:
      (a, α), both [..., T, H]: a_t(z) = g_t(z) + log p(z_t = z, evidence before t), α_t = a_t + leaf_t.
    """
    prior, post = forward_chain(hmm, leaf, log_latent).unshifted()
    latent = log_latent_of(log_latent)
    return (prior if latent is None else prior + latent), post


def backward_messages(hmm: HMM, leaf: jax.Array, log_latent: Latent = None) -> jax.Array:
    """β_t(z) = log p(evidence after t | z_t = z) with leaf [..., T, H] and latent potentials → [..., T, H]."""
    chain = backward_chain(hmm, leaf, log_latent)
    total = jnp.flip(exact_cumsum(jnp.flip(chain.shift, -1)), -1)[..., None]
    return chain.prior + jnp.concatenate([total[..., 1:, :], jnp.zeros_like(total[..., :1, :])], axis=-2)


def log_partition_from_leaf(hmm: HMM, leaf: jax.Array, log_latent: Latent = None) -> jax.Array:
    """log Z [...] from leaf values [..., T, H]; -inf for impossible evidence."""
    return log_partition_of(hmm, backward_chain(hmm, leaf, log_latent))


def log_partition_of(hmm: HMM, backward: Chain) -> jax.Array:
    """log Z [...] from the backward chain."""
    first = logspace.safe_log(hmm.initial) + backward.post[..., 0, :]
    return logspace.logsumexp(first) + exact_cumsum(backward.shift)[..., -1]


@jax.jit
def log_partition(hmm: HMM, log_phi, tokens, known, log_latent=None) -> jax.Array:
    """log Z = log Σ_{x_M} p(x) Π_{t∈M} φ_t(x_t), without φ of the known positions.

    Args:
      hmm: the circuit; `normalization` "local" leaves φ out, so Z is the evidence of the known positions.
      log_phi: [T, V] log-potentials (None: φ ≡ 1), tokens: [T] int, known: [T] bool.
      log_latent: optional [T, H] latent potentials g, which are part of Z, or a `Context`.

    Returns:
      A scalar; -inf, with zero gradients, for impossible evidence.
    """
    return log_partition_from_leaf(hmm, leaf_values(hmm, log_phi, tokens, known, log_latent), log_latent)


def check_window(hmm: HMM, log_phi, tokens, known) -> None:
    """Raises a ValueError where the evidence's shapes [..., T, V], [..., T], [..., T] do not fit the circuit."""
    if known.shape != tokens.shape:
        raise ValueError(f"known has shape {known.shape}, tokens {tokens.shape}; they must be equal")
    if tokens.shape[-1:] != (hmm.length,):
        raise ValueError(f"tokens have shape {tokens.shape}; this circuit's windows have {hmm.length} positions")
    if log_phi is not None and log_phi.shape != (*tokens.shape, hmm.vocab_size):
        raise ValueError(
            f"log_phi has shape {log_phi.shape}; for tokens of shape {tokens.shape} and a vocabulary of "
            f"{hmm.vocab_size} it must be {(*tokens.shape, hmm.vocab_size)}"
        )


def _with_latent(leaf: jax.Array, log_latent: Latent) -> jax.Array:
    check_context(log_latent, *leaf.shape[-2:])
    latent = log_latent_of(log_latent)
    return leaf if latent is None else leaf + latent
