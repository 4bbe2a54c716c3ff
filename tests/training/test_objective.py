"""Objectives against their definitions, and the circuit's against the library's conditional log-likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax.circuits import HMM, conditional_log_likelihood
from codd_jax.training.circuit import circuit_loss, init_circuit_logits
from codd_jax.training.objective import conditional_log_likelihoods, diffusion_loss, factorised_log_likelihoods

BATCH, LENGTH, VOCAB, STATES = 3, 5, 7, 4


@pytest.fixture(scope="module")
def windows():
    """Log-potentials, clean tokens and hidden positions of a few windows."""
    rng = np.random.default_rng(0)
    log_phi = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(BATCH, LENGTH, VOCAB)), jnp.float32))
    tokens = jnp.asarray(rng.integers(VOCAB, size=(BATCH, LENGTH)), jnp.int32)
    masked = jnp.asarray([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 1, 0, 0]], bool)
    return log_phi, tokens, masked


def test_diffusion_loss_is_the_mean_over_hidden_tokens(windows):
    log_phi, tokens, masked = jax.device_get(windows)
    rows = [-np.mean([log_phi[b, t, tokens[b, t]] for t in range(LENGTH) if masked[b, t]]) for b in range(BATCH)]
    # Any constant may be added to logits.
    assert float(diffusion_loss(log_phi + 3.0, tokens, masked)) == pytest.approx(np.mean(rows), abs=1e-5)


def test_factorised_log_likelihoods(windows):
    log_phi, tokens, masked = jax.device_get(windows)
    expected = [sum(log_phi[b, t, tokens[b, t]] for t in range(LENGTH) if masked[b, t]) for b in range(BATCH)]
    np.testing.assert_allclose(factorised_log_likelihoods(*windows), expected, atol=1e-5)


@pytest.mark.parametrize("normalization", ["global", "local"])
def test_circuit_loss_is_the_circuits_own_objective(windows, normalization):
    log_phi, tokens, masked = windows
    logits = init_circuit_logits(jax.random.key(1), STATES, VOCAB, noise=1.0)
    hmm = logits.to_hmm(LENGTH, normalization)
    rows = [
        conditional_log_likelihood(hmm, log_phi[b], tokens[b], ~masked[b], normalization=normalization)
        for b in range(BATCH)
    ]
    loss = circuit_loss(logits, log_phi, tokens, masked, normalization)
    assert float(loss) == pytest.approx(-np.mean(rows) / LENGTH, abs=1e-6)
    np.testing.assert_allclose(conditional_log_likelihoods(hmm, log_phi, tokens, masked), rows, atol=1e-5)


def test_uniform_emissions_leave_the_backbone_as_it_is(windows):
    log_phi, tokens, masked = windows
    logits = init_circuit_logits(jax.random.key(1), STATES, VOCAB, noise=1.0)
    logits = logits.replace(emission=jnp.zeros_like(logits.emission))
    coupled = conditional_log_likelihoods(logits.to_hmm(LENGTH), log_phi, tokens, masked)
    np.testing.assert_allclose(coupled, factorised_log_likelihoods(log_phi, tokens, masked), atol=1e-5)


def test_circuit_logits_make_a_circuit():
    hmm = init_circuit_logits(jax.random.key(0), STATES, VOCAB).to_hmm(LENGTH)
    assert isinstance(hmm.validate(), HMM)
    assert (hmm.num_states, hmm.vocab_size, hmm.length) == (STATES, VOCAB, LENGTH)
    assert len({float(value) for value in hmm.emission[:, 0]}) == STATES, "equal states could never part"
