"""Messages of circuits as wide as the published ones, where CPUs take the products in blocks, against float64 NumPy."""

import jax
import jax.numpy as jnp
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
    transition[transition < 1e-37] = 0  # no denormal numbers: XLA takes them for zeros
    transition = transition / transition.sum(-1, keepdims=True)
    initial, emission = rng.dirichlet(np.ones(STATES)), rng.dirichlet(np.ones(8), size=STATES)
    return HMM.from_probabilities(initial, transition.astype(np.float32), emission, LENGTH)


def reference(hmm: HMM, leaf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(α, β) of one window [T, H] in float64 log-sum-exps."""
    transition = np.asarray(hmm.transition, np.float64)
    matrices = [transition if transition.ndim == 2 else transition[t] for t in range(LENGTH - 1)]
    weight = leaf.astype(np.float64)
    with np.errstate(divide="ignore"):
        forward, backward = [np.log(np.asarray(hmm.initial, np.float64)) + weight[0]], [np.zeros(STATES)]
        for t, matrix in enumerate(matrices):
            forward.append(np.logaddexp.reduce(forward[-1][:, None] + np.log(matrix), axis=0) + weight[t + 1])
            message = weight[LENGTH - 1 - t] + backward[0]
            backward.insert(0, np.logaddexp.reduce(message + np.log(matrices[-1 - t]), axis=1))
    return np.stack(forward), np.stack(backward)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 1)])
@pytest.mark.parametrize("spread", [4, 100])  # nats; the wide one underflows a product
def test_messages_equal_float64(tied, batch, spread):
    hmm = circuit(tied)
    leaf = spread * np.asarray(jax.random.normal(jax.random.key(1), (*batch, LENGTH, STATES)))
    alpha, beta = jax.jit(forward_messages)(hmm, leaf)[1], jax.jit(backward_messages)(hmm, leaf)
    for index in np.ndindex(*batch):
        expected = reference(hmm, leaf[index])
        for got, wanted in zip((alpha[index], beta[index]), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6 * spread)  # log-values up to ten times that


def test_vmap_over_windows_equals_a_batch():
    hmm = circuit(True)
    leaf = 4 * jax.random.normal(jax.random.key(2), (3, LENGTH, STATES))
    for function in (lambda x: forward_messages(hmm, x)[1], lambda x: backward_messages(hmm, x)):
        np.testing.assert_allclose(jax.vmap(function)(leaf), function(leaf), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backwards", [False, True])
def test_vmap_over_circuits_and_windows_equals_one_by_one(backwards):
    windows = 3 * jax.random.normal(jax.random.key(4), (2, 3, LENGTH, 5))
    circuits = [HMM.random(jax.random.key(seed), LENGTH, 5, 7) for seed in range(2)]

    def messages(hmm, leaf):
        return backward_messages(hmm, leaf) if backwards else forward_messages(hmm, leaf)[1]

    def gradient(hmm, leaf):
        return jax.grad(lambda hmm, leaf: messages(hmm, leaf)[LENGTH // 2].max(), argnums=(0, 1))(hmm, leaf)

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *circuits)
    for function in (messages, gradient):
        together = jax.vmap(jax.vmap(function, (None, 0)))(stacked, windows)
        for row, hmm in enumerate(circuits):
            for column in range(3):
                one = jax.tree.map(lambda x: x[row, column], together)  # noqa: B023
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
                    one,
                    function(hmm, windows[row, column]),
                )


@pytest.mark.parametrize("tied", [True, False])
def test_a_window_of_one_position(tied):
    hmm = HMM.random(jax.random.key(5), 1, 3, 4)
    hmm = hmm if tied else hmm.replace(transition=jnp.zeros((0, 3, 3)))
    leaf = jnp.array([[0.5, -1.0, 2.0]])
    np.testing.assert_allclose(forward_messages(hmm, leaf)[1], np.log(hmm.initial) + leaf, rtol=1e-6)
    np.testing.assert_allclose(backward_messages(hmm, leaf), np.zeros((1, 3)), atol=1e-6)


@pytest.mark.parametrize("varying", ["windows", "circuit"])
def test_gradients_under_shard_map_equal_those_without(varying):
    hmm = circuit(True)
    leaf = 4 * jax.random.normal(jax.random.key(3), (2, LENGTH, STATES))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def total(leaf, hmm):
        return forward_messages(hmm, leaf)[1][..., -1, :].max() + backward_messages(hmm, leaf)[..., 0, :].max()

    rows = jax.vmap(jax.grad(total), in_axes=(0, None))
    specs = (jax.P("data"), jax.P()) if varying == "windows" else (jax.P(), jax.P("data"))
    sharded = jax.jit(jax.shard_map(rows, mesh=mesh, in_specs=specs, out_specs=jax.P("data")))
    np.testing.assert_allclose(sharded(leaf, hmm), jax.jit(rows)(leaf, hmm), atol=1e-6)
