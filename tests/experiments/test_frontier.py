"""Accuracy against tokens per pass on the demo: what is compared, and what is written."""

import json

import pytest

from experiments.demo_task import frontier


def test_gains_are_paired_by_problem():
    gain = frontier.paired_gain([1, 1, 0, 0], [1, 0, 1, 1])
    # Differences 0, -1, 1, 1: mean 1/4, standard deviation sqrt(3/4 - 1/16).
    assert gain["cache_gain"] == 0.25
    assert gain["cache_gain_error"] == pytest.approx(1.96 * (3 / 4 - 1 / 16) ** 0.5 / 2)


def test_every_pace_is_decoded_with_and_without_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(frontier, "STEPS", (2,))
    monkeypatch.setattr(frontier, "THRESHOLDS", (0.9,))
    monkeypatch.setattr(frontier, "METHODS", {"backbone": "backbone alone", "codd": "CoDD"})
    result = frontier.run_frontier(tmp_path, problems=6, cache_refresh=1, progress=False)
    rows = {(row["method"], row["pace"], row["cache"]): row for row in result["rows"]}
    assert len(rows) == 8
    for (method, pace, cache), row in rows.items():
        if cache == "dual":  # refreshed at every pass it is no approximation
            plain = rows[method, pace, "none"]
            assert row["cache_gain"] == row["cache_gain_error"] == 0
            assert row["tokens_per_forward"] == plain["tokens_per_forward"]
    assert result["largest_cache_loss"] == 0
    assert json.loads((tmp_path / "frontier.json").read_text()) == result
    assert "| CoDD | threshold 0.9 |" in (tmp_path / "frontier.md").read_text()
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
