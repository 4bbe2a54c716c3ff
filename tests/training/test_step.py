"""The optax step descends, and what it returns is what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from codd_jax.training.circuit import circuit_loss, init_circuit_logits
from codd_jax.training.step import make_update, start_training


def test_one_step_of_gradient_descent():
    update = make_update(lambda params, x: jnp.sum(params["w"] * x), optax.sgd(0.5))
    state, value = update(start_training({"w": jnp.ones(3)}, optax.sgd(0.5)), jnp.asarray([1.0, 2.0, 3.0]))
    assert float(value) == 6.0 and int(state.step) == 1
    np.testing.assert_allclose(state.params["w"], [0.5, 0.0, -0.5])


def test_a_circuit_learns_what_the_backbone_cannot_say():
    # Two sentences, evenly likely: independent positions cost log 2 each, one latent choice costs log 2 in all.
    length, vocab = 4, 2
    tokens = jnp.asarray([[0] * length, [1] * length] * 8, jnp.int32)
    log_phi = jnp.full((16, length, vocab), -np.log(2.0))
    masked = jnp.ones((16, length), bool)
    optimizer = optax.adam(0.1)
    update = make_update(circuit_loss, optimizer)
    state = start_training(init_circuit_logits(jax.random.key(0), 4, vocab), optimizer)
    losses = []
    for _ in range(150):
        state, value = update(state, log_phi, tokens, masked)
        losses.append(float(value))
    assert losses[0] > 0.95 * np.log(2.0)
    assert losses[-1] < 1.1 * np.log(2.0) / length
