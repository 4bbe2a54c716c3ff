"""Fitting an HMM circuit by gradient: free logits for parameters, the conditional log-likelihood for an objective."""

import jax
import jax.numpy as jnp
from flax import struct

from codd_jax.circuits import HMM, logspace
from codd_jax.training.objective import conditional_log_likelihoods


@struct.dataclass
class CircuitLogits:
    """Unnormalised log-parameters of an `HMM`; softmax over the last axis gives its probabilities.

    Attributes:
      initial: [states].
      transition: [states, states], parent → child.
      emission: [states, vocab].
    """

    initial: jax.Array
    transition: jax.Array
    emission: jax.Array

    @classmethod
    def of(cls, hmm: HMM) -> "CircuitLogits":
        """Logits of a circuit's probabilities; zeros become -inf and stay zeros."""
        return cls(*(logspace.safe_log(x.astype(jnp.float32)) for x in (hmm.initial, hmm.transition, hmm.emission)))

    def to_hmm(self, length: int, normalization: str = "global") -> HMM:
        """The circuit with these parameters for windows of `length` positions."""
        return HMM.from_logits(self.initial, self.transition, self.emission, length=length, normalization=normalization)


def init_circuit_logits(key: jax.Array, num_states: int, vocab_size: int, noise: float = 0.5) -> CircuitLogits:
    """Near-uniform logits: the coupled model starts as the backbone, the noise breaks the symmetry between states."""
    shapes = CircuitLogits(
        initial=(num_states,), transition=(num_states, num_states), emission=(num_states, vocab_size)
    )
    keys = CircuitLogits(*jax.random.split(key, 3))
    return jax.tree.map(
        lambda shape, key: noise * jax.random.normal(key, shape), shapes, keys, is_leaf=lambda x: isinstance(x, tuple)
    )


def circuit_loss(
    logits: CircuitLogits,
    log_phi: jax.Array,
    tokens: jax.Array,
    masked: jax.Array,
    normalization: str = "global",
) -> jax.Array:
    """Negative conditional log-likelihood of hidden tokens in nats per token of the window (paper, section 4.3).

    Args:
      logits: the circuit's parameters.
      log_phi: [batch, length, vocab], the frozen backbone's log-probabilities.
      tokens: [batch, length] int32, the clean tokens.
      masked: [batch, length] bool, the hidden ones.
      normalization: "global" or "local".
    """
    hmm = logits.to_hmm(tokens.shape[1], normalization)
    return -jnp.mean(conditional_log_likelihoods(hmm, log_phi, tokens, masked)) / tokens.shape[1]
