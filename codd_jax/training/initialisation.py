"""Where circuit training starts: near the backbone itself, or from what the clean windows say about each other."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from codd_jax.circuits import HMM, observed_counts
from codd_jax.circuits.learning import Counts
from codd_jax.circuits.updates import em_update, top_down_anchors
from codd_jax.training.circuit import init_circuit_logits

INITS = ("uniform", "data")
_EM_BATCH = 256


def near_uniform(key: jax.Array, num_states: int, vocab_size: int, length: int, noise: float = 0.5) -> HMM:
    """Softmax-normal rows: the coupled model is the backbone but for noise, which parts the states."""
    return init_circuit_logits(key, num_states, vocab_size, noise).to_hmm(length)


def from_data(
    key: jax.Array,
    tokens: jax.Array,
    num_states: int,
    vocab_size: int,
    *,
    strength: float = 0.5,
    steps: int = 60,
    noise: float = 0.5,
) -> HMM:
    """A circuit whose emissions say how much likelier than usual a state makes a token.

    An HMM is fitted to the clean windows by stepwise EM from token frequencies and noise. The backbone's potentials
    hold the frequencies already, and what is missing from a product of marginals is p(x) / Π p(x_t): each emission is
    therefore divided by the token's overall frequency, E ∝ (E / m)^strength, and transitions are kept. That couples
    before any training, but gradients go further from `near_uniform` (docs/optimisers.md).

    Args:
      key: typed PRNG key.
      tokens: [count, T] int32, clean windows.
      num_states, vocab_size: H and V.
      strength: 0 gives uniform emissions, the backbone itself; 1 all that EM has found.
      steps: of EM, with 256 windows each. noise: standard deviation of the first logits.
    """
    tokens = np.asarray(tokens)
    length = tokens.shape[1]
    frequency = np.bincount(tokens.reshape(-1), minlength=vocab_size).astype(np.float32)
    frequency = (frequency + 1 / vocab_size) / (frequency.sum() + 1)
    logits = init_circuit_logits(key, num_states, vocab_size, noise)
    hmm = logits.replace(emission=logits.emission + jnp.log(frequency)).to_hmm(length)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    for number in range(steps):
        chosen = tokens[rng.integers(len(tokens), size=min(_EM_BATCH, len(tokens)))]
        hmm = _em_step(hmm, jnp.asarray(chosen), (number + 2.0) ** -0.6)
    return _tilted(hmm, jnp.asarray(frequency), strength)


@jax.jit
def _em_step(hmm: HMM, tokens: jax.Array, step_size: jax.Array) -> HMM:
    # Pseudocounts shared over the vocabulary keep every token possible in every state.
    return em_update(hmm, observed_counts(hmm, tokens), step_size, 1.0)


@functools.partial(jax.jit, static_argnames="strength")
def _tilted(hmm: HMM, frequency: jax.Array, strength: float) -> HMM:
    uses: Counts = top_down_anchors(hmm)
    overall = uses.emission.sum(0) / uses.emission.sum()
    # Rare tokens stay where they are: a share of the frequencies is added to both sides of the ratio.
    floor = 0.1 * frequency + 1e-4 / frequency.size
    ratio = (hmm.emission + floor) / (overall + floor)
    return HMM(hmm.initial, hmm.transition, jax.nn.softmax(strength * jnp.log(ratio), axis=-1), length=hmm.length)
