"""What training makes large: the likelihood of hidden tokens, factorised for the backbone, joint for the circuit."""

import jax
import jax.numpy as jnp
import optax

from codd_jax.circuits import HMM, conditional_log_likelihood, modulate


def diffusion_loss(logits: jax.Array, tokens: jax.Array, masked: jax.Array) -> jax.Array:
    """The bound on the negative log-likelihood, in nats per token (LLaDA, arXiv:2502.09992, Eq. 6).

    Each window's loss is the mean over its hidden tokens, that is their sum divided by the mask ratio and the length:
    with the number of hidden tokens uniform over 1 … length this is the bound, and of lower variance than hiding each
    token by itself.

    Args:
      logits: [batch, length, vocab], aligned to the token they predict.
      tokens: [batch, length] int32, the clean tokens.
      masked: [batch, length] bool, the hidden ones, at least one in each window.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    counts = jnp.maximum(jnp.sum(masked, axis=1), 1)
    return jnp.mean(jnp.sum(jnp.where(masked, losses, 0.0), axis=1) / counts)


def factorised_log_likelihoods(log_phi: jax.Array, tokens: jax.Array, masked: jax.Array) -> jax.Array:
    """Log-likelihood [batch] of each window's hidden tokens under the backbone alone.

    Args:
      log_phi: [batch, length, vocab] log-probabilities.
      tokens: [batch, length] int32, the clean tokens.
      masked: [batch, length] bool.
    """
    chosen = jnp.take_along_axis(log_phi, tokens[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(masked, chosen, 0.0), axis=1)


def conditional_log_likelihoods(hmm: HMM, log_phi: jax.Array, tokens: jax.Array, masked: jax.Array) -> jax.Array:
    """Log-likelihood [batch] of each window's hidden tokens under backbone and circuit together (paper, section 4.3).

    Arguments as in `factorised_log_likelihoods`; the normalization is the circuit's own.
    """
    return jax.vmap(
        lambda row_phi, row_tokens, row_masked: conditional_log_likelihood(
            hmm, row_phi, row_tokens, ~row_masked, normalization=hmm.normalization
        )
    )(log_phi, tokens, masked)


def coupled_log_likelihoods(
    hmm: HMM,
    log_phi: jax.Array,
    tokens: jax.Array,
    masked: jax.Array,
    hidden: jax.Array | None = None,
    noise: jax.Array | None = None,
) -> jax.Array:
    """`conditional_log_likelihoods` of a circuit that may follow the context (paper, appendix E), [batch].

    Args:
      hmm: the circuit; with `modulation` it is differentiable in the heads, too.
      log_phi, tokens, masked: as in `factorised_log_likelihoods`.
      hidden: [batch, length, width] final-normed states, row t the one that position t is predicted from; read only by
        a modulated circuit.
      noise: [batch], what heads that know the noise level are told; default the masked share of the window.

    Raises:
      ValueError: a modulated circuit without hidden states, or with those of another width.
    """
    noise = jnp.mean(masked, axis=-1, dtype=jnp.float32) if noise is None else noise
    context = modulate(hmm, hidden, noise)

    def one(row_phi, row_tokens, row_masked, row_context):
        return conditional_log_likelihood(hmm, row_phi, row_tokens, ~row_masked, hmm.normalization, row_context)

    axes = (0, 0, 0, None if context is None else context.batch_axes)
    return jax.vmap(one, in_axes=axes)(log_phi, tokens, masked, context)
