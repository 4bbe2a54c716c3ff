"""The parameters' struct: shapes, renormalisation, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax.circuits import HMM


def parts(length=4, states=3, vocab=5, tied=True):
    lead_a, lead_e = ((), ()) if tied else ((length - 1,), (length,))
    shapes = (states,), (*lead_a, states, states), (*lead_e, states, vocab)
    return [np.full(shape, 1 / shape[-1], np.float32) for shape in shapes]


@pytest.mark.parametrize("tied", [True, False])
def test_properties_and_pytree(tied):
    hmm = HMM.from_probabilities(*parts(tied=tied), length=4, normalization="local")
    assert (hmm.num_states, hmm.vocab_size, hmm.homogeneous, hmm.length) == (3, 5, tied, 4)
    assert len(jax.tree.leaves(hmm)) == 3
    doubled = jax.jit(lambda h: jax.tree.map(lambda x: 2 * x, h))(hmm)
    assert (doubled.length, doubled.normalization) == (4, "local")
    with pytest.raises(ValueError, match="sums to 1"):
        doubled.validate()
    HMM.random(jax.random.key(0), 4, 3, 5, tied=tied).validate()


def test_rows_within_a_thousandth_are_kept_bit_for_bit():
    initial, transition, emission = parts()
    emission[0, 0] *= 1.0005
    hmm = HMM.from_probabilities(initial, transition, emission, 4)
    np.testing.assert_array_equal(hmm.emission, emission)


def test_rows_that_are_off_are_renormalised_with_a_warning():
    initial, transition, emission = parts()
    emission[1] *= 1.5
    with pytest.warns(UserWarning, match="emission: 1 of 3 rows"):
        hmm = HMM.from_probabilities(initial, transition, emission, 4)
    np.testing.assert_allclose(hmm.emission[1], 0.2, rtol=1e-6)
    np.testing.assert_array_equal(hmm.emission[0], emission[0])


def test_bfloat16_stays_bfloat16():
    initial, transition, emission = parts(vocab=7)
    hmm = HMM.from_probabilities(initial, transition, jnp.asarray(emission, jnp.bfloat16), 4)
    assert hmm.emission.dtype == jnp.bfloat16


def test_from_logits_is_softmax_of_rows():
    logits = [np.random.default_rng(0).normal(size=x.shape).astype(np.float32) for x in parts()]
    hmm = HMM.from_logits(*logits, length=4).validate()
    np.testing.assert_allclose(hmm.emission, jax.nn.softmax(logits[2], -1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.__setitem__(0, p[0][None]), r"expected \[H\]"),
        (lambda p: p.__setitem__(1, p[1][:2]), r"transition has shape \(2, 3\)"),
        (lambda p: p.__setitem__(1, np.stack([p[1]] * 4)), r"length is 4"),
        (lambda p: p.__setitem__(2, p[2].T), r"emission has shape \(5, 3\)"),
        (lambda p: p.__setitem__(2, p[2] - 1), "negative"),
        (lambda p: p.__setitem__(2, p[2] * np.nan), "NaN"),
        (lambda p: p.__setitem__(1, p[1] * 0), "sum to zero"),
    ],
)
def test_misfits_are_named(change, message):
    arrays = parts()
    change(arrays)
    with pytest.raises(ValueError, match=message):
        HMM.from_probabilities(*arrays, length=4)


@pytest.mark.parametrize(("length", "normalization", "message"), [(0, "global", "length is 0"), (4, "both", "'both'")])
def test_settings_are_checked(length, normalization, message):
    with pytest.raises(ValueError, match=message):
        HMM.from_probabilities(*parts(), length=length, normalization=normalization)
