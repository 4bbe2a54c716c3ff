"""Window covers against a brute-force search, and the published code's one window against a plain loop."""

import itertools

import numpy as np
import pytest

from codd_jax.decoding import windows

WIDTH = 11


def _fewest(points, length, window):
    """The least number of windows inside the row that cover the points, by trying all sets of windows."""
    starts = range(max(length - window, 0) + 1)
    covers = [frozenset(p for p in points if start <= p < start + window) for start in starts]
    for count in range(len(points) + 1):
        for chosen in itertools.combinations(covers, count):
            if frozenset().union(*chosen) >= set(points):
                return count
    raise AssertionError("no cover")


@pytest.mark.parametrize("window", [2, 3, 4, 5, 9])
def test_cover_is_the_brute_force_minimum(window):
    cases = 200
    rng = np.random.default_rng(window)
    lengths = rng.integers(1, WIDTH + 1, cases).astype(np.int32)
    points = (rng.random((cases, WIDTH)) < rng.uniform(0.05, 1, (cases, 1))) & (np.arange(WIDTH) < lengths[:, None])
    starts, groups = (np.asarray(x) for x in windows.cover(points, lengths, window))
    for row in range(cases):
        mine = np.flatnonzero(points[row])
        used = starts[row][starts[row] >= 0]
        assert len(used) == _fewest(mine.tolist(), int(lengths[row]), window)
        np.testing.assert_array_equal(groups[row] >= 0, points[row])
        for p in mine:
            start = starts[row][groups[row][p]]
            assert start <= p < start + window
        assert (used >= 0).all() and (used <= max(lengths[row] - window, 0)).all()


def test_cover_centres_its_windows_and_clamps_them():
    points = np.zeros((3, 40), bool)
    points[0, [10, 12]] = points[1, [0]] = points[2, [29]] = True
    starts, _ = windows.cover(points, np.array([40, 40, 30], np.int32), 8)
    np.testing.assert_array_equal(starts[:, 0], [8, 0, 22])


def test_best_window_is_the_first_with_most_points():
    rng = np.random.default_rng(0)
    cases, window = 200, 5
    lengths = rng.integers(6, WIDTH + 1, cases).astype(np.int32)
    points = (rng.random((cases, WIDTH)) < 0.3) & (np.arange(WIDTH) < lengths[:, None])
    starts, coverage = (np.asarray(x) for x in windows.best_window(points, lengths, window))
    for row in range(cases):
        best, at = 0, 0
        for anchor in np.flatnonzero(points[row]):
            start = min(max(anchor - window // 2, 0), max(int(lengths[row]) - window, 0))
            covered = points[row, start : start + window].sum()
            if covered > best:
                best, at = covered, start
        assert (starts[row], coverage[row]) == (at, best)
