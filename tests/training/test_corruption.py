"""Corruption hides exactly as many tokens as asked, evenly over positions, with counts spread over their range."""

import jax
import numpy as np
import pytest

from codd_jax.training.corruption import corrupt, stratified_counts


def test_exactly_the_asked_number_is_hidden():
    tokens = jax.random.randint(jax.random.key(0), (40, 16), 1, 50)
    counts = jax.random.randint(jax.random.key(1), (40,), 0, 17)
    noisy, masked = jax.device_get(corrupt(jax.random.key(2), tokens, counts, mask_id=0))
    np.testing.assert_array_equal(masked.sum(1), counts)
    np.testing.assert_array_equal(noisy, np.where(masked, 0, tokens))


def test_positions_are_hidden_evenly():
    rows, length, count = 6000, 8, 3
    tokens = np.ones((rows, length), np.int32)
    _, masked = corrupt(jax.random.key(3), tokens, np.full(rows, count), mask_id=0)
    share = np.asarray(masked).mean(0)
    expected = count / length
    assert np.abs(share - expected).max() < 4.5 * np.sqrt(expected * (1 - expected) / rows)
    pairs = np.mean(np.asarray(masked)[:, 0] & np.asarray(masked)[:, 5])
    expected = count / length * (count - 1) / (length - 1)
    assert abs(pairs - expected) < 4.5 * np.sqrt(expected / rows)


@pytest.mark.parametrize("least", [1, 5])
def test_counts_are_uniform_and_stratified(least):
    batch, length = 64, 12
    draws = np.stack([stratified_counts(jax.random.key(i), batch, length, least) for i in range(200)])
    values = np.arange(least, length + 1)
    assert draws.min() == least and draws.max() == length
    for row in draws:
        # A stratum is 1/64 of the range, so every value is drawn as often as its share of it, give or take two.
        frequency = np.array([(row == value).sum() for value in values])
        assert np.abs(frequency - batch / len(values)).max() < 2
    first = np.array([(draws[:, 0] == value).mean() for value in values])
    assert np.abs(first - 1 / len(values)).max() < 4.5 * np.sqrt(1 / len(values) / 200)


def test_counts_outside_the_window_are_refused():
    with pytest.raises(ValueError, match="13"):
        stratified_counts(jax.random.key(0), 4, 12, least=13)
