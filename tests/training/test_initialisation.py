"""A start from data already couples what belongs together, and strength 0 is the backbone itself."""

import jax
import jax.numpy as jnp
import numpy as np

from codd_jax.training.initialisation import from_data, near_uniform
from codd_jax.training.objective import conditional_log_likelihoods, factorised_log_likelihoods

T, V, H = 4, 6, 3


def two_sentences():
    """Windows of two sentences, and what a backbone says that knows each position's marginals alone."""
    tokens = jnp.asarray([[0, 1, 2, 5], [3, 4, 2, 5]] * 20, jnp.int32)
    share = jnp.mean(jax.nn.one_hot(tokens, V), axis=0)
    log_phi = jnp.log(0.97 * share + 0.03 / V)
    return tokens, jnp.broadcast_to(log_phi, (len(tokens), T, V)), jnp.ones((len(tokens), T), bool)


def test_a_start_from_data_couples_before_any_training():
    tokens, log_phi, masked = two_sentences()
    alone = float(factorised_log_likelihoods(log_phi, tokens, masked).mean())
    hmm = from_data(jax.random.key(0), tokens, H, V, strength=1.0).validate()
    coupled = float(conditional_log_likelihoods(hmm, log_phi, tokens, masked).mean())
    assert coupled > alone + 0.05
    again = from_data(jax.random.key(0), tokens, H, V, strength=1.0)
    jax.tree.map(np.testing.assert_array_equal, hmm, again)


def test_strength_zero_and_no_noise_are_the_backbone():
    tokens, log_phi, masked = two_sentences()
    alone = factorised_log_likelihoods(log_phi, tokens, masked)
    for hmm in (
        from_data(jax.random.key(0), tokens, H, V, strength=0.0, steps=3),
        near_uniform(jax.random.key(0), H, V, T, noise=0.0),
    ):
        np.testing.assert_allclose(conditional_log_likelihoods(hmm, log_phi, tokens, masked), alone, atol=1e-4)


def test_tokens_that_never_occur_stay_possible():
    tokens, _, _ = two_sentences()
    hmm = from_data(jax.random.key(0), tokens, H, V + 3, strength=1.0)
    assert float(hmm.emission[:, V:].min()) > 1e-3 / V
    parted = near_uniform(jax.random.key(0), H, V, T)
    assert len({float(x) for x in parted.emission[:, 0]}) == H, "equal states could never part"
