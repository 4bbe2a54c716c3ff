"""Heads put on a circuit: nothing changes until they learn, and they learn what a static circuit cannot know."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from codd_jax.circuits import HMM
from codd_jax.training.modulated import attach_modulation, emission_basis, parse_modulation
from codd_jax.training.objective import conditional_log_likelihoods, coupled_log_likelihoods
from codd_jax.training.step import make_update, start_training

WIDTH, LENGTH, STATES, VOCAB = 4, 4, 4, 4


def windows(seed, batch=32):
    """Windows of the words 0123 or 1032, told apart by the hidden states alone; (log_phi, tokens, masked, hidden)."""
    rng = np.random.default_rng(seed)
    word = rng.integers(2, size=batch)
    tokens = np.array([[0, 1, 2, 3], [1, 0, 3, 2]], np.int32)[word]
    masked = rng.random(tokens.shape) < 0.8
    masked[:, 0] = True
    hidden = np.broadcast_to(np.eye(WIDTH, dtype=np.float32)[word][:, None], (batch, LENGTH, WIDTH))
    log_phi = np.full((batch, LENGTH, VOCAB), -np.log(VOCAB), np.float32)
    return log_phi, tokens, masked, hidden


@pytest.fixture(scope="module")
def circuit():
    """A circuit that knows both words and no context: states are tokens."""
    cycle = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]], np.float32) + 0.02
    emission = np.eye(4, dtype=np.float32) + 0.02
    rows = (x / x.sum(-1, keepdims=True) for x in (np.array([1, 1, 0.02, 0.02], np.float32), cycle, emission))
    return HMM.from_probabilities(*rows, length=LENGTH)


@pytest.mark.parametrize("kinds", [("latent",), ("transition",), ("emission",)])
def test_each_kind_learns_the_context_from_zero(circuit, kinds):
    hmm = attach_modulation(circuit, WIDTH, kinds, key=jax.random.key(0), noise=True)
    assert hmm.modulation.kinds == kinds

    def loss(modulation, log_phi, tokens, masked, hidden):
        scores = coupled_log_likelihoods(hmm.replace(modulation=modulation), log_phi, tokens, masked, hidden)
        return -jnp.sum(scores) / jnp.sum(masked)

    optimizer = optax.adam(0.02)
    # Copies: an update reuses the memory of the state before it.
    state = start_training(jax.tree.map(jnp.copy, hmm.modulation), optimizer)
    update = make_update(loss, optimizer)
    values = []
    for step in range(60):
        state, value = update(state, *windows(step))
        values.append(float(value))
    held_out = windows(1000)
    static = -conditional_log_likelihoods(circuit, *held_out[:3]).sum() / held_out[2].sum()
    first = windows(0)
    before = -conditional_log_likelihoods(circuit, *first[:3]).sum() / first[2].sum()
    np.testing.assert_allclose(values[0], before, rtol=1e-6)
    assert loss(state.params, *held_out) < 0.85 * static


def test_noise_defaults_to_the_masked_share(circuit):
    hmm = attach_modulation(circuit, WIDTH, ("latent",), key=jax.random.key(0), noise=True)
    weights = jax.random.normal(jax.random.key(1), hmm.modulation.latent.shape)
    hmm = hmm.with_modulation(hmm.modulation.replace(latent=weights))
    log_phi, tokens, masked, hidden = windows(3)
    given = coupled_log_likelihoods(hmm, log_phi, tokens, masked, hidden)
    np.testing.assert_array_equal(
        given, coupled_log_likelihoods(hmm, log_phi, tokens, masked, hidden, masked.mean(-1, dtype=np.float32))
    )
    other = coupled_log_likelihoods(hmm, log_phi, tokens, masked, hidden, jnp.zeros(32))
    assert not np.allclose(given, other)
    with pytest.raises(ValueError, match="pass hidden"):
        coupled_log_likelihoods(hmm, log_phi, tokens, masked)


def test_the_basis_is_made_of_the_circuits_emissions(circuit):
    rows = jnp.exp(emission_basis(jax.random.key(0), circuit, 3))
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3
    assert (rows <= circuit.emission.max(0) + 1e-6).all()


def test_words_of_the_command_line(circuit):
    assert parse_modulation("emission, latent") == (("latent", "emission"), False)
    assert parse_modulation("transition+noise") == (("transition",), True)
    for text, reason in (("noise", "empty"), ("latent,gates", "gates"), ("", "empty")):
        with pytest.raises(ValueError, match=f"modulation is {reason}"):
            parse_modulation(text)
    with pytest.raises(ValueError, match="rank is 0"):
        attach_modulation(circuit, WIDTH, ("emission",), key=jax.random.key(0), rank=0)
