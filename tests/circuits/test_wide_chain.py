"""Messages of circuits as wide as the published ones, where CPUs take the products in blocks, against float64 NumPy."""

import jax
import numpy as np
import pytest

from codd_jax.circuits import HMM
from codd_jax.circuits.messages import backward_messages, forward_messages

STATES = 1024
LENGTH = 4


def circuit(tied: bool) -> HMM:
    """A random circuit with a state that is never entered and with rows that are far from uniform."""
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.full(STATES, 0.05), size=STATES if tied else (LENGTH - 1, STATES))
    transition[..., 3] = 0
    transition = transition / transition.sum(-1, keepdims=True)
    initial, emission = rng.dirichlet(np.ones(STATES)), rng.dirichlet(np.ones(8), size=STATES)
    return HMM.from_probabilities(initial, transition.astype(np.float32), emission, LENGTH)


def reference(hmm: HMM, leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(α, β) of one window [T, H] by float64 products, in logs."""
    transition = np.asarray(hmm.transition, np.float64)
    matrices = [transition if transition.ndim == 2 else transition[t] for t in range(LENGTH - 1)]
    weight = np.exp(leaf.astype(np.float64))
    forward, backward = [np.asarray(hmm.initial, np.float64) * weight[0]], [np.ones(STATES)]
    for t, matrix in enumerate(matrices):
        forward.append((forward[-1] @ matrix) * weight[t + 1])
        backward.insert(0, matrices[-1 - t] @ (weight[LENGTH - 1 - t] * backward[0]))
    with np.errstate(divide="ignore"):
        return np.log(np.stack(forward)), np.log(np.stack(backward))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 1)])
def test_messages_equal_float64(tied, batch):
    hmm = circuit(tied)
    leaf = 4 * np.asarray(jax.random.normal(jax.random.key(1), (*batch, LENGTH, STATES)))
    alpha, beta = jax.jit(forward_messages)(hmm, leaf)[1], jax.jit(backward_messages)(hmm, leaf)
    for index in np.ndindex(*batch):
        expected = reference(hmm, leaf[index])
        np.testing.assert_allclose(alpha[index], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(beta[index], expected[1], rtol=1e-5, atol=1e-5)


def test_vmap_over_windows_equals_a_batch():
    hmm = circuit(True)
    leaf = 4 * jax.random.normal(jax.random.key(2), (3, LENGTH, STATES))
    for function in (lambda x: forward_messages(hmm, x)[1], lambda x: backward_messages(hmm, x)):
        np.testing.assert_allclose(jax.vmap(function)(leaf), function(leaf), rtol=1e-5, atol=1e-5)


def test_gradients_under_shard_map_equal_those_without():
    hmm = circuit(True)
    leaf = 4 * jax.random.normal(jax.random.key(3), (2, LENGTH, STATES))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def total(leaf, hmm):
        return forward_messages(hmm, leaf)[1][..., -1, :].max() + backward_messages(hmm, leaf)[..., 0, :].max()

    rows = jax.vmap(jax.grad(total), in_axes=(0, None))
    sharded = jax.jit(jax.shard_map(rows, mesh=mesh, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data")))
    np.testing.assert_allclose(sharded(leaf, hmm), jax.jit(rows)(leaf, hmm), atol=1e-6)
