"""Stored states give the backbone's own potentials, for both families and every kind of head; sources repeat."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax.backbones import PRESETS, Transformer
from codd_jax.training.dataset import Example
from codd_jax.training.fresh import FreshWindows
from codd_jax.training.potentials import (
    Head,
    MemoryWindows,
    WindowPotentials,
    aligned_states,
    epoch_batch,
    head_log_phi,
    make_encoder,
)
from codd_jax.training.rows import Rows, lay_out

T, MASK, EOS = 4, 30, 31
TINY = {"vocab_size": 32, "width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8}
TINY |= {"ffn_width": 24, "mask_id": MASK, "eos_id": EOS, "pad_id": EOS}


def make_backbone(preset="llada-1m", **options):
    """A narrow random backbone."""
    config = dataclasses.replace(PRESETS[preset], **TINY, **options)
    return Transformer(config, rngs=nnx.Rngs(0))


def make_rows(*lengths, bucket=8):
    """Rows with random solutions of these lengths."""
    rng = np.random.default_rng(0)
    examples = [Example((1, 2, 3), tuple(rng.integers(0, 30, size=length).tolist())) for length in lengths]
    return lay_out(examples, T, EOS, EOS, bucket=bucket)


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("llada-1m", {}),
        ("llada-1m", {"tie_embeddings": True, "scale_logits": True}),
        ("llada-1m", {"head_bias": True}),
        ("dream-1m", {}),
    ],
)
def test_stored_states_give_the_backbones_own_potentials(preset, options):
    backbone = make_backbone(preset, **options)
    if options.get("head_bias"):
        backbone.head.bias[...] = jax.random.normal(jax.random.key(1), (32,))
    rows = make_rows(11, 3)
    starts = jnp.asarray([[3, 11], [0, 3]])  # at the very start Dream has no position before
    positions = (starts[..., None] + jnp.arange(T)).reshape(2, -1)
    logits = backbone(rows.tokens, rows.lengths, positions)
    states = aligned_states(backbone, backbone.encode(rows.tokens, rows.lengths), starts, T)
    got = head_log_phi(backbone, states.reshape(2, -1, 16))
    np.testing.assert_allclose(got, jax.nn.log_softmax(logits), atol=1e-5)


def test_the_encoder_cuts_windows_and_marks_those_that_are_not_there():
    backbone, rows = make_backbone(), make_rows(7, 2)
    masked = np.zeros(rows.tokens.shape, bool)
    masked[:, 4:6] = True
    noisy = np.where(masked, MASK, rows.tokens)
    starts = np.asarray([[3, 7], [3, -1]])
    windows = make_encoder(backbone, T)(noisy, rows.tokens, masked, rows.lengths, starts)
    assert windows.hidden.shape == (4, T, 16)
    np.testing.assert_array_equal(windows.tokens[1], rows.tokens[0, 7:11])
    assert np.asarray(windows.masked).sum(1).tolist() == [2, 0, 2, 0]
    assert np.asarray(windows.noise).tolist() == [0.5, 0.0, 0.5, 0.0]


def test_epochs_are_permutations_and_steps_are_numbers():
    numbers = np.asarray([3, 5, 7, 9, 11])
    steps = [epoch_batch(numbers, 0, step, 2) for step in range(5)]
    drawn = np.concatenate(steps)
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == numbers.tolist()
    np.testing.assert_array_equal(epoch_batch(numbers, 0, 3, 2), steps[3])
    assert (epoch_batch(numbers, 1, 0, 4) != epoch_batch(numbers, 0, 0, 4)).any()


def test_windows_in_memory():
    masked = np.asarray([[1, 0], [0, 0], [1, 1]], bool)
    windows = WindowPotentials.of(np.arange(12.0).reshape(3, 2, 2), np.zeros((3, 2), np.int32), masked)
    source = MemoryWindows(Head(jnp.zeros((5, 2)), None), windows, windows, batch_size=2)
    assert len(source) == 2 and source.length == 2
    assert sorted(np.asarray(source.batch(0).hidden)[:, 0, 0]) == [0, 8], "the window without masks is left out"
    _, second = source.validation()
    assert second.tokens.shape == (2, 2) and np.asarray(second.noise).tolist() == [1, 0], "filled up"
    with pytest.raises(ValueError, match="none of 3 windows has a masked token"):
        MemoryWindows(source.head, windows.replace(masked=np.zeros_like(masked)))


@pytest.mark.parametrize("preset", ["llada-1m", "dream-1m"])
def test_fresh_windows(preset):
    backbone = make_backbone(preset)
    groups = [make_rows(3, 2, 3, 1), make_rows(11, 9, bucket=16)]
    source = FreshWindows(backbone, groups, groups[0], batch_size=4, windows_per_row=2, seed=1)
    assert len(source) == 4 + 6
    # An epoch: 4 rows of one window in batches of 2 rows; 2 rows of 3 windows, so 4 units.
    batches = [source.batch(step) for step in range(4)]
    assert {batch.tokens.shape for batch in batches} == {(4, T)}
    jax.tree.map(np.testing.assert_array_equal, source.batch(1), batches[1])
    assert (np.asarray(source.batch(5).masked) != np.asarray(batches[1].masked)).any(), "another epoch masks anew"
    shares = np.concatenate([np.asarray(source.batch(step).noise) for step in range(80)])
    assert shares.max() == 1 and 0.3 < shares[shares > 0].mean() < 0.7
    held_out = list(source.validation())
    assert len(held_out) == 2
    for one, again in zip(held_out, source.validation(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, again)
    if preset == "llada-1m":
        blocks = {tuple(rows.tokens[r, s : s + T]) for rows in groups for r in range(len(rows.tokens))
                  for s in range(3, int(rows.lengths[r]), T)}  # fmt: skip
        assert {tuple(w) for b in jax.device_get(batches) for w in b.tokens[b.masked.any(1)]} <= blocks


def test_fresh_windows_that_cannot_be():
    backbone, rows = make_backbone(), make_rows(3)
    with pytest.raises(ValueError, match="batch of 5 windows cannot be made of rows with 2 each"):
        FreshWindows(backbone, rows, batch_size=5, windows_per_row=2)
    with pytest.raises(ValueError, match="no rows"):
        FreshWindows(backbone, [])
    other = Rows(rows.tokens, rows.prompt_lengths, rows.lengths, window=2)
    with pytest.raises(ValueError, match=r"windows of \[2, 4\] tokens"):
        FreshWindows(backbone, rows, other, batch_size=4)
