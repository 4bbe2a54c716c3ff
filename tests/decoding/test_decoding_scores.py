"""Ranking keys and filters against golden confidences, float64 arithmetic and a sorting twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax.decoding import filters, scores
from tests.oracles import decode_twins

FILTERS = {"plain": (None, None), "top_p09": (0.9, None), "top_k5": (None, 5), "top_p05_k10": (0.5, 10)}


@pytest.fixture(scope="module")
def goldens(fixtures_dir):
    with np.load(fixtures_dir / "decode_loops" / "scores.npz") as archive:
        return dict(archive)


@jax.jit
def _filtered(logits, top_p, top_k):
    return filters.filter_logits(logits, top_p, top_k)


def filter_logits(logits, top_p=None, top_k=None):
    return _filtered(jnp.asarray(logits), np.float32(1.0 if top_p is None else top_p), np.int32(top_k or 0))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("algorithm", ["maskgit_plus", "margin", "entropy"])
def test_dream_confidences(goldens, algorithm, name):
    canonical = decode_twins.NAMES.get(algorithm, algorithm)
    logits = filter_logits(goldens["logits"], *FILTERS[name])
    _, token = scores.best_token(logits)
    confidence = scores.confidence(canonical, scores.ranking_key(canonical, logits, token))
    np.testing.assert_array_equal(token, goldens[f"dream_{algorithm}_{name}__x0"])
    np.testing.assert_allclose(confidence, goldens[f"dream_{algorithm}_{name}__confidence"], rtol=1e-5, atol=1e-6)


def test_llada_confidence(goldens):
    logits = jnp.asarray(goldens["logits"])
    top, token = scores.best_token(logits)
    golden = goldens["llada_low_confidence__confidence_float64"]
    key = scores.log_odds(logits, token, top)
    np.testing.assert_allclose(jax.nn.sigmoid(key), golden, rtol=1e-6)
    np.testing.assert_array_equal(np.argsort(-key), np.argsort(-golden))


@pytest.mark.parametrize(("golden", "options"), [("top_p_logits_09", {"top_p": 0.9}), ("top_k_logits_5", {"top_k": 5})])
def test_filters(goldens, golden, options):
    kept = np.asarray(filter_logits(goldens["logits"], **options)) > -np.inf
    np.testing.assert_array_equal(kept, goldens[golden] > np.finfo(np.float32).min / 2)


def test_filters_against_a_sort_with_ties():
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(0, 2, (60, 23)), 0).astype(np.float32)
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    logits[:, 0] = 0.0
    logits[:, 1] = -0.0
    for top_p, top_k in [(0.03, None), (0.5, None), (0.83, 6), (None, 1), (None, 40), (0.999, 3)]:
        kept = np.asarray(filter_logits(logits, top_p, top_k)) > -np.inf
        twin = np.stack([decode_twins.filtered(row, top_p, top_k) for row in logits]) > -np.inf
        np.testing.assert_array_equal(kept, twin & (logits > -np.inf), err_msg=f"{top_p} {top_k}")
    assert _filtered._cache_size() <= 2


@pytest.mark.parametrize("algorithm", ["low_confidence", "topprob", "margin", "entropy"])
def test_keys_rank_where_float32_probabilities_saturate(algorithm):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (50, 30)).astype(np.float32)
    logits[:, 7] += np.linspace(0, 32, 50, dtype=np.float32)
    _, token = scores.best_token(logits)
    key = np.asarray(scores.ranking_key(algorithm, jnp.asarray(logits), token))
    exact = [decode_twins.score(algorithm, row, int(t)) for row, t in zip(logits, token, strict=True)]
    np.testing.assert_array_equal(np.argsort(-key, kind="stable"), np.argsort(-np.array(exact), kind="stable"))
    assert len(np.unique(key)) == 50


def test_ties_go_to_the_lowest_index():
    logits = jnp.asarray([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    np.testing.assert_array_equal(scores.best_token(logits)[1], [1, 0])
    assert np.isneginf(scores.ranking_key("margin", logits, jnp.asarray([1, 0]))).all()
