"""Rows are laid out as decoding lays them out; masks fall where and as often as they should."""

import jax
import numpy as np
import pytest

from codd_jax.training.dataset import Example
from codd_jax.training.rows import bucketed, epoch_units, lay_out, mask_rows, stratified_ratios, window_starts

T, EOS, PAD, MASK = 4, 90, 91, 92


def examples(*lengths):
    """Examples with prompts of 3 and solutions of the given lengths."""
    return [Example((1, 2, 3), tuple(range(10, 10 + length))) for length in lengths]


def test_layout():
    rows = lay_out(examples(1, 4, 6), T, EOS, PAD, bucket=16)
    assert rows.tokens.shape == (3, 16) and rows.tokens.dtype == np.int32
    assert rows.tokens[0].tolist() == [1, 2, 3, 10, EOS, EOS, EOS] + [PAD] * 9
    assert rows.tokens[1].tolist() == [1, 2, 3, 10, 11, 12, 13, EOS, EOS, EOS, EOS] + [PAD] * 5
    assert rows.lengths.tolist() == [7, 11, 11] and rows.prompt_lengths.tolist() == [3, 3, 3]
    assert rows.num_windows.tolist() == [1, 2, 2]
    assert rows.take([2]).tokens[0, 3:9].tolist() == [10, 11, 12, 13, 14, 15]
    assert bucketed(examples(30, 1, 4, 6), T, bucket=8) == [[1], [2, 3], [0]]


def test_long_examples_are_left_out_and_said():
    with pytest.warns(UserWarning, match="1 of 2 examples are longer than 8"):
        rows = lay_out(examples(6, 1), T, EOS, PAD, max_length=8)
    assert rows.lengths.tolist() == [7]
    with pytest.raises(ValueError, match="shortest needs 7"):
        lay_out(examples(6, 1), T, EOS, PAD, max_length=6)
    with pytest.raises(ValueError, match="no examples"):
        lay_out([], T, EOS, PAD)


def test_uniform_masks():
    rows = lay_out(examples(30) * 400, T, EOS, PAD, bucket=8)
    noisy, masked, t = jax.device_get(mask_rows(jax.random.key(0), rows, MASK))
    inside = (np.arange(rows.tokens.shape[1]) >= 3) & (np.arange(rows.tokens.shape[1]) < 35)
    assert not masked[:, ~inside].any() and masked[:, 33:35].any(), "padding EOS is maskable, prompts are not"
    np.testing.assert_array_equal(noisy, np.where(masked, MASK, rows.tokens))
    assert sorted((t * 400).astype(int)) == list(range(400)), "one ratio from each stratum"
    share = masked[:, inside].mean(1)
    assert abs(share - t).max() < 0.4 and abs((share - t).mean()) < 0.01
    ratios = np.full(400, 0.25, np.float32)
    again = mask_rows(jax.random.key(1), rows, MASK, ratios=ratios)[1]
    assert abs(np.asarray(again)[:, inside].mean() - 0.25) < 0.02


def test_blockwise_masks_are_moments_of_decoding():
    rows = lay_out(examples(11) * 300, T, EOS, PAD, bucket=8)
    _, masked, _ = jax.device_get(mask_rows(jax.random.key(0), rows, MASK, "blockwise"))
    blocks = masked[:, 3:15].reshape(300, 3, T)
    active = np.asarray([[(0 < b.mean() < 1) for b in row] for row in blocks])
    assert (active.sum(1) <= 1).all()
    for row, on in zip(blocks, active, strict=True):
        if on.any():
            where = int(on.argmax())
            assert not row[:where].any() and row[where + 1 :].all()
    assert min(active[:, 0].sum(), active[:, 2].sum()) > 40, "every block has its turn"


def test_masks_of_a_row_are_the_keys():
    rows = lay_out(examples(11, 5), T, EOS, PAD)
    first, again = (mask_rows(jax.random.key(3), rows, MASK)[1] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(mask_rows(jax.random.key(4), rows, MASK)[1]) != np.asarray(first)).any()
    with pytest.raises(ValueError, match="'all' is unknown"):
        mask_rows(jax.random.key(3), rows, MASK, "all")


def test_ratios_reach_both_ends():
    ratios = np.asarray(stratified_ratios(jax.random.key(0), 1000))
    assert 0 <= ratios.min() < 0.001 and 0.999 < ratios.max() <= 1


def test_windows():
    rng = np.random.default_rng(0)
    assert window_starts(rng, 3, 15, T).tolist() == [3, 7, 11]
    offsets = {tuple(window_starts(rng, 3, 15, T, aligned=False)) for _ in range(50)}
    assert offsets == {(3, 7, 11), (4, 8, 11), (5, 9, 11), (6, 10, 11)}


def test_an_epoch_has_every_window_once():
    rows = lay_out(examples(11, 1, 6), T, EOS, PAD)
    units = list(epoch_units(0, 0, rows, 2))
    seen = sorted((row, int(start)) for row, starts in units for start in starts)
    assert seen == [(0, 3), (0, 7), (0, 11), (1, 3), (2, 3), (2, 7)]
    assert max(len(starts) for _, starts in units) == 2
    same = list(epoch_units(0, 0, rows, 2))
    assert [(r, s.tolist()) for r, s in units] == [(r, s.tolist()) for r, s in same]
