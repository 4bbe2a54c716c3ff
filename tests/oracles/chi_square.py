"""Draws of sequences against enumerated probabilities."""

import numpy as np


def assert_follows(draws, expected):
    """A chi-square test of sequences [N, T] against probabilities over all sequences, at about 4 sigma."""
    expected = expected * len(draws)
    observed = np.zeros(expected.shape)
    np.add.at(observed, tuple(np.asarray(draws).T), 1)
    assert observed[expected == 0].sum() == 0
    often = expected >= 5
    observed = np.append(observed[often], observed[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    keep = expected > 0
    statistic = np.sum((observed[keep] - expected[keep]) ** 2 / expected[keep])
    freedom = keep.sum() - 1
    # Wilson-Hilferty: the cube root of a chi-square variable over its mean is nearly normal.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
    assert z < 4, (statistic, freedom)
