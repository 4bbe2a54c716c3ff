"""Which proposals a step commits: ranks, ties, thresholds."""

import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax.decoding import selection


def test_top_ranked_breaks_ties_by_position_and_never_takes_others():
    order = jnp.asarray([[1.0, 5.0, 5.0, -jnp.inf, 9.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    candidates = jnp.asarray([[True, True, True, True, False], [False, True, True, False, True]])
    taken = selection.top_ranked(order, candidates, jnp.asarray([1, 2]))
    np.testing.assert_array_equal(taken, [[False, True, False, False, False], [False, True, True, False, False]])
    everything = selection.top_ranked(order, candidates, jnp.asarray([9, 9]))
    np.testing.assert_array_equal(everything, candidates)


@pytest.mark.parametrize("threshold", [0.3, 0.9, 1.0])
def test_threshold_takes_all_above_and_at_least_one(threshold):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.01, 0.99, (50, 8))
    candidates = rng.random((50, 8)) < 0.7
    key = jnp.asarray(np.log(confidence / (1 - confidence)), jnp.float32)
    taken = np.asarray(selection.above_threshold(key, jnp.asarray(candidates), np.float32(threshold), factor=False))
    for row in range(50):
        inside = np.flatnonzero(candidates[row])
        wanted = {p for p in inside if confidence[row, p] >= threshold}
        wanted |= {max(inside, key=lambda p, row=row: confidence[row, p])} if len(inside) else set()
        assert set(np.flatnonzero(taken[row])) == wanted


@pytest.mark.parametrize("factor", [0.2, 1.0, 2.5])
def test_factor_takes_the_largest_count_that_is_sure_enough(factor):
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.3, 0.999, (50, 8))
    candidates = rng.random((50, 8)) < 0.8
    candidates[:, 0] = True
    key = jnp.asarray(np.log(confidence / (1 - confidence)), jnp.float32)
    taken = np.asarray(selection.above_threshold(key, jnp.asarray(candidates), np.float32(factor), factor=True))
    for row in range(50):
        best = sorted(confidence[row, candidates[row]], reverse=True)
        sure = [n for n, c in enumerate(best, start=1) if (n + 1) * (1 - c) < factor]
        assert taken[row].sum() == max([1, *sure])
        assert (taken[row] <= candidates[row]).all()
