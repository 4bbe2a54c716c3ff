"""Cached hidden states give the log-potentials that the whole backbone gives, for both families' alignments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax.backbones import PRESETS, Transformer
from codd_jax.training.hidden_cache import cache_hidden_states, window_hidden, window_log_phi
from codd_jax.training.windows import WindowBatch, put_windows, take_windows

LENGTH, MASK = 6, 30


@pytest.fixture(scope="module", params=["llada-1m", "dream-1m"])
def backbone(request):
    """A narrow random backbone of each family."""
    config = dataclasses.replace(
        PRESETS[request.param], vocab_size=32, width=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8,
        ffn_width=24, mask_id=MASK, eos_id=31, pad_id=31,
    )  # fmt: skip
    return Transformer(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def batch():
    """Rows with windows at the very start, inside, and at the end."""
    tokens = jax.random.randint(jax.random.key(0), (3, 14), 0, 30)
    return WindowBatch(tokens=tokens, lengths=jnp.asarray([14, 12, 14]), starts=jnp.asarray([0, 4, 8]))


def test_windows_come_out_and_go_in(batch):
    windows = take_windows(batch.tokens, batch.starts, LENGTH)
    expected = [np.asarray(batch.tokens)[b, s : s + LENGTH] for b, s in enumerate([0, 4, 8])]
    np.testing.assert_array_equal(windows, expected)
    written = np.asarray(put_windows(batch.tokens, batch.starts, -windows))
    np.testing.assert_array_equal(take_windows(written, batch.starts, LENGTH), -windows)
    assert (written < 0).sum() == (np.asarray(windows) > 0).sum()


def test_log_phi_of_cached_windows(backbone, batch):
    positions = batch.starts[:, None] + jnp.arange(LENGTH)
    whole = jax.nn.log_softmax(backbone(batch.tokens, batch.lengths, positions))
    hidden = window_hidden(backbone, batch.tokens, batch.lengths, batch.starts, LENGTH)
    assert hidden.shape == (3, LENGTH + 1, 16)
    np.testing.assert_allclose(window_log_phi(backbone, hidden), whole, atol=1e-5)


def test_cache_holds_corrupted_windows(backbone, batch):
    graphdef, params = nnx.split(backbone)
    counts = jnp.asarray([1, 3, LENGTH])
    cache = cache_hidden_states(
        graphdef, params, [(batch, counts), (batch, counts)], jax.random.key(5), length=LENGTH, mask_id=MASK
    )
    np.testing.assert_array_equal(np.asarray(cache.masked).sum(1), [1, 3, LENGTH] * 2)
    np.testing.assert_array_equal(cache.tokens[:3], take_windows(batch.tokens, batch.starts, LENGTH))
    assert (np.asarray(cache.masked)[:2] != np.asarray(cache.masked)[3:5]).any(), "every batch draws anew"
    noisy = put_windows(batch.tokens, batch.starts, jnp.where(cache.masked[:3], MASK, cache.tokens[:3]))
    hidden = window_hidden(backbone, noisy, batch.lengths, batch.starts, LENGTH)
    np.testing.assert_allclose(cache.take(jnp.arange(3)).hidden, hidden, atol=1e-5)


def test_an_empty_cache_is_refused(backbone):
    with pytest.raises(ValueError, match="empty"):
        cache_hidden_states(*nnx.split(backbone), [], jax.random.key(0), length=LENGTH, mask_id=MASK)
