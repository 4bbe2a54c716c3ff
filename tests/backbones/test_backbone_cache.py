"""Kept keys and values: exact where nothing is stale, and equal to a NumPy transformer with frozen ones where it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax.backbones import PRESETS, Transformer
from codd_jax.backbones.cache import encode_again, encode_and_keep
from tests.oracles.cached_transformer import CachedTransformer, numpy_params

SMALL = {"width": 24, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "ffn_width": 32}
SMALL |= {"vocab_size": 30, "mask_id": 29, "eos_id": 28, "pad_id": 28}
OPTIONS = {"qk_norm": True, "qkv_bias": True, "out_bias": True, "norm_bias": True, "head_bias": True}
CONFIGS = {
    "llada": dataclasses.replace(PRESETS["llada-1m"], **SMALL, **OPTIONS),
    "dream": dataclasses.replace(PRESETS["dream-1m"], **SMALL),
}
LENGTHS = jnp.array([11, 7], jnp.int32)
# Row 0 computes a block, row 1 one cut at the row's end, with a position twice and others that do not exist.
POSITIONS = jnp.array([[3, 4, 5, 6, 7], [1, 5, 6, 5, 11]], jnp.int32)


@pytest.fixture(scope="module", params=[(name, layout) for name in CONFIGS for layout in ("stacked", "unrolled")])
def case(request):
    """Backbone, tokens before and after, and jitted functions."""
    name, layout = request.param
    rng = np.random.default_rng(0)
    stacked = Transformer(CONFIGS[name], rngs=nnx.Rngs(0))
    for path, leaf in nnx.to_flat_state(nnx.state(stacked, nnx.Param)):
        if path[-1] == "bias":
            leaf[...] = jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    graphdef, params = nnx.split(stacked.with_layout(layout))
    keep = jax.jit(lambda params, *args: encode_and_keep(nnx.merge(graphdef, params), *args))
    again = jax.jit(lambda params, *args: encode_again(nnx.merge(graphdef, params), *args))
    before = jnp.asarray(rng.integers(0, 28, (2, 11)), jnp.int32)
    return stacked, params, keep, again, before


def test_computing_again_what_has_not_changed_changes_nothing(case):
    backbone, params, keep, again, tokens = case
    hidden, kept = keep(params, tokens, LENGTHS)
    expected = np.asarray(backbone.encode(tokens, LENGTHS))
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-5)
    some = np.asarray(again(params, kept, tokens, LENGTHS, POSITIONS))
    np.testing.assert_allclose(some[0], expected[0, POSITIONS[0]], rtol=0, atol=1e-5)
    np.testing.assert_allclose(some[1, :4], expected[1, POSITIONS[1, :4]], rtol=0, atol=1e-5)


def test_all_positions_computed_again_read_nothing_kept(case):
    backbone, params, keep, again, tokens = case
    kept = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), keep(params, tokens, LENGTHS)[1])
    everything = jnp.broadcast_to(jnp.arange(10, -1, -1, dtype=jnp.int32), tokens.shape)
    hidden = np.asarray(again(params, kept, tokens, LENGTHS, everything))[:, ::-1]
    expected = np.asarray(backbone.encode(tokens, LENGTHS))
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(hidden[row, :length], expected[row, :length], rtol=0, atol=1e-5)


def test_other_positions_are_frozen(case):
    backbone, params, keep, again, before = case
    kept = keep(params, before, LENGTHS)[1]
    after = before.at[0, 5].set(29).at[1, 5].set(29)
    after = after.at[0, 9].set(29)  # not computed again: must not be seen
    hidden = again(params, kept, after, LENGTHS, POSITIONS)
    oracle = CachedTransformer(backbone.config, numpy_params(nnx.to_pure_dict(nnx.state(backbone, nnx.Param))))
    for row, length in enumerate(LENGTHS):
        real = [int(i) for i in POSITIONS[row] if i < length]
        frozen = oracle.encode([int(i) for i in before[row, :length]])[1]
        expected, _ = oracle.encode([int(i) for i in after[row, :length]], real, frozen)
        fresh, _ = oracle.encode([int(i) for i in after[row, :length]])
        for slot, position in enumerate(real):
            np.testing.assert_allclose(hidden[row, slot], expected[position], rtol=0, atol=2e-5)
        assert max(np.abs(fresh[i] - expected[i]).max() for i in real) > 1e-3


def test_only_the_chosen_positions_go_through_the_blocks(case):
    _, params, keep, again, tokens = case
    kept = jax.eval_shape(keep, params, tokens, LENGTHS)[1]
    whole = keep.lower(params, tokens, LENGTHS).cost_analysis()["flops"]
    some = again.lower(params, kept, tokens, LENGTHS, POSITIONS).cost_analysis()["flops"]
    # The rotary table is for the whole row in both.
    assert some < whole * POSITIONS.shape[1] / tokens.shape[1] * 1.1
