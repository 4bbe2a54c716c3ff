"""Expected counts of a circuit's parameters: what EM-type learning needs, and what the gradient is made of.

By an unnormalised log-parameter, the conditional log-likelihood has the derivative F⁺ − F⁻ (CoDD, section 4.3).
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from codd_jax.circuits import logspace
from codd_jax.circuits.chain import Chain
from codd_jax.circuits.context import Latent, emission_change
from codd_jax.circuits.hmm import HMM, NORMALIZATIONS
from codd_jax.circuits.messages import (
    backward_chain,
    check_window,
    forward_chain,
    known_leaf_values,
    leaf_values,
    masked_leaf_values,
)
from codd_jax.circuits.posterior import divide


@flax.struct.dataclass
class Counts:
    """Expected numbers of uses of each parameter, summed over the batch and over tied positions.

    Attributes:
      initial: [H]; transition: [H, H] or [T-1, H, H]; emission: [H, V] or [T, H, V]: shaped as in the `HMM`.
    """

    initial: jax.Array
    transition: jax.Array
    emission: jax.Array

    @classmethod
    def zeros_like(cls, hmm: HMM) -> Counts:
        """No counts yet, float32, in the shapes of `hmm`."""
        return cls(*(jnp.zeros(x.shape, jnp.float32) for x in (hmm.initial, hmm.transition, hmm.emission)))


@jax.jit
def expected_counts(hmm: HMM, log_phi, tokens, known, log_latent: Latent = None) -> Counts:
    """Counts under p̂(x, z | x_K, φ): F⁻ of the global objective, F⁺ where every position is known.

    Args:
      hmm: read as globally normalised, whatever it says.
      log_phi: [..., T, V] (None: φ ≡ 1; not read where all is known), tokens, known: [..., T],
        log_latent: optional [..., T, H]. Leading dimensions are a batch, which is summed without being held apart.

    Windows of impossible evidence add nothing.

    Raises:
      ValueError: `log_latent` is a `Context` that changes the emissions, whose uses are not the circuit's alone.
    """
    _check_static_emissions(log_latent)
    hmm = hmm.replace(normalization="global")
    leaf = leaf_values(hmm, log_phi, tokens, known)
    posterior, forward = _posterior(hmm, leaf, log_latent)
    log_phi = jnp.zeros((*tokens.shape, hmm.vocab_size), leaf.dtype) if log_phi is None else log_phi
    masked = jnp.where(known[..., None], 0, posterior)
    emission = token_counts(hmm, tokens, posterior - masked) + soft_token_counts(hmm, log_phi, known, masked)
    return Counts(*_latent_counts(hmm, forward, posterior), emission)


@jax.jit
def observed_counts(hmm: HMM, tokens, log_latent: Latent = None) -> Counts:
    """Counts under p(z | x) for fully observed windows [..., T]: the F of plain likelihood learning, and F⁺."""
    _check_static_emissions(log_latent)
    leaf = known_leaf_values(hmm, tokens)
    posterior, forward = _posterior(hmm, leaf, log_latent)
    return Counts(*_latent_counts(hmm, forward, posterior), token_counts(hmm, tokens, posterior))


@functools.partial(jax.jit, static_argnames="normalization")
def conditional_counts(
    hmm: HMM, log_phi, tokens, known, normalization: str = "global", log_latent: Latent = None
) -> tuple[Counts, Counts]:
    """(F⁺, F⁻) of the conditional log-likelihood, whose difference is its gradient by unnormalised log-parameters.

    Args:
      As in `conditional_log_likelihood`, with optional leading batch dimensions, which are summed.

    With "local" normalisation F⁺ has the latent posterior of the locally normalised chain with x observed; the
    emission part of F⁻ has the same posterior at masked positions, that of the known tokens alone at known ones.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is {normalization!r}; it must be one of {', '.join(NORMALIZATIONS)}")
    if normalization == "global":
        return observed_counts(hmm, tokens, log_latent), expected_counts(hmm, log_phi, tokens, known, log_latent)
    _check_static_emissions(log_latent)
    joint, forward = local_posterior(hmm, log_phi, tokens, known, log_latent)
    positive = Counts(*_latent_counts(hmm, forward, joint), token_counts(hmm, tokens, joint))
    evidence, forward = _posterior(hmm, jnp.where(known[..., None], known_leaf_values(hmm, tokens), 0), log_latent)
    soft = soft_token_counts(hmm, log_phi, known, jnp.where(known[..., None], 0, joint))
    hard = token_counts(hmm, tokens, jnp.where(known[..., None], evidence, 0))
    return positive, Counts(*_latent_counts(hmm, forward, evidence), soft + hard)


def local_posterior(hmm: HMM, log_phi, tokens, known, log_latent: Latent = None) -> tuple[jax.Array, Chain]:
    """Latent posterior [..., T, H] of the locally normalised chain with all of x observed, and its forward chain."""
    check_window(hmm, log_phi, tokens, known)
    observed = known_leaf_values(hmm, tokens)
    masked = masked_leaf_values(hmm, log_phi, ~known)
    return _posterior(hmm, jnp.where(known[..., None], observed, divide(observed, masked)), log_latent)


def token_counts(hmm: HMM, tokens: jax.Array, posterior: jax.Array) -> jax.Array:
    """Σ posterior_t(z)·1[x_t = v] for tokens [..., T] and latent weights [..., T, H], in the emission's shape."""
    tied = hmm.emission.ndim == 2
    weights = posterior.reshape(-1, *posterior.shape[-2:]).astype(jnp.float32)
    index = tokens.reshape(-1, tokens.shape[-1])
    zeros = jnp.zeros(hmm.emission.shape, jnp.float32)
    if tied:
        return zeros.at[:, index.reshape(-1)].add(weights.reshape(-1, weights.shape[-1]).T, mode="drop")
    positions = jnp.broadcast_to(jnp.arange(hmm.length), index.shape)
    return zeros.at[positions, :, index].add(weights, mode="drop")


def soft_token_counts(hmm: HMM, log_phi: jax.Array, known: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ weights_t(z)·E[z,v]φ_t(v)/Σ_u E[z,u]φ_t(u) for weights [..., T, H], in the emission's shape."""
    return _uses(lambda e: masked_leaf_values(hmm.replace(emission=e), log_phi, ~known), hmm.emission, weights)


def _latent_counts(hmm: HMM, forward: Chain, posterior: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Counts of the initial and the transition probabilities from a forward chain and the posterior [..., T, H]."""
    initial = posterior[..., 0, :].reshape(-1, hmm.num_states).sum(0)
    post = forward.post[..., :-1, :]

    def step(transition):
        if transition.ndim == 2:
            return logspace.log_matmul(post, transition, 0)
        return jax.vmap(lambda x, a: logspace.log_matmul(x, a, 0), in_axes=(-2, 0), out_axes=-2)(post, transition)

    return initial, _uses(step, hmm.transition, posterior[..., 1:, :])


def _uses(log_product, matrix: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ weights · (the share that each entry of `matrix` has in the product): matrix ⊙ ∂ Σ weights·log(…)/∂ matrix."""
    matrix = matrix.astype(jnp.float32)
    return matrix * jax.vjp(log_product, matrix)[1](weights)[0]


def _posterior(hmm: HMM, leaf: jax.Array, log_latent: Latent) -> tuple[jax.Array, Chain]:
    """Latent posterior [..., T, H] (zero where impossible) and the forward chain, from leaf values."""
    forward = forward_chain(hmm, leaf, log_latent)
    return jnp.exp(logspace.log_normalize(forward.post + backward_chain(hmm, leaf, log_latent).prior)), forward


def _check_static_emissions(context: Latent) -> None:
    if emission_change(context) is not None:
        raise ValueError(
            "expected counts are of a circuit whose emissions do not follow the context; train modulated emissions by "
            "the gradient of conditional_log_likelihood"
        )
