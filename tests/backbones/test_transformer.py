"""The transformer itself: layouts, parameters, gradients, use inside loops, and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax.backbones import PRESETS, Transformer
from codd_jax.backbones.attention import attend, choose_implementation
from codd_jax.backbones.layers import RMSNorm, rotary_table, rotate

TINY = dataclasses.replace(
    PRESETS["llada-1m"], width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_width=48, vocab_size=64,
    mask_id=63, eos_id=62, pad_id=62, qk_norm=True, qkv_bias=True, out_bias=True, norm_bias=True, head_bias=True,
)  # fmt: skip


def _tokens(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 62, shape), jnp.int32)


@pytest.mark.parametrize(
    "config", [TINY, PRESETS["dream-1m"], dataclasses.replace(TINY, tie_embeddings=True, head_bias=False)]
)
def test_the_config_counts_the_parameters(config):
    for layout in ("stacked", "unrolled"):
        backbone = Transformer.abstract(config, layout=layout)
        assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(backbone))) == config.num_params
    blocks = nnx.state(Transformer.abstract(config).blocks)
    assert sum(leaf.size for leaf in jax.tree.leaves(blocks)) == config.num_block_params


def test_layouts_convert_both_ways_and_agree():
    stacked = Transformer(TINY, rngs=nnx.Rngs(0))
    unrolled = stacked.with_layout("unrolled")
    tokens, lengths = _tokens((2, 9)), jnp.array([9, 4], jnp.int32)
    np.testing.assert_allclose(unrolled(tokens, lengths), stacked(tokens, lengths), rtol=0, atol=2e-5)
    back = nnx.to_pure_dict(nnx.state(unrolled.with_layout("stacked")))
    jax.tree.map(np.testing.assert_array_equal, back, nnx.to_pure_dict(nnx.state(stacked)))
    assert stacked.with_layout("stacked") is stacked
    assert unrolled.blocks[1].q.weight.shape == (32, 32) and stacked.blocks.k.weight.shape == (2, 16, 32)


def test_equal_configs_give_equal_static_parts():
    first, second = (nnx.split(Transformer(TINY, rngs=nnx.Rngs(seed)))[0] for seed in (0, 1))
    assert first == second and hash(first) == hash(second)


def test_from_params_lists_everything_that_does_not_fit():
    params = nnx.to_pure_dict(nnx.state(Transformer(TINY, rngs=nnx.Rngs(0))))
    del params["final_norm"]["bias"]
    params["blocks"]["q"]["weight"] = params["blocks"]["q"]["weight"][:1]
    params["extra"] = {"weight": jnp.zeros(3)}
    with pytest.raises(ValueError, match=r"final_norm\.bias is missing.*extra\.weight is unknown.*q\.weight has shape"):
        Transformer.from_params(TINY, params)


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_it_runs_inside_a_while_loop_and_has_gradients(layout):
    graphdef, params = nnx.split(Transformer(TINY, layout=layout, rngs=nnx.Rngs(0)))
    tokens = _tokens((2, 6))

    @jax.jit
    def iterate(params):
        def body(carry):
            return carry[0] + 1, nnx.merge(graphdef, params)(carry[1]).argmax(-1).astype(jnp.int32)

        return jax.lax.while_loop(lambda carry: carry[0] < 2, body, (0, tokens))[1]

    expected = tokens
    for _ in range(2):
        expected = nnx.merge(graphdef, params)(expected).argmax(-1).astype(jnp.int32)
    np.testing.assert_array_equal(iterate(params), expected)
    gradients = jax.jit(jax.grad(lambda params: nnx.merge(graphdef, params)(tokens).var()))(params)
    kinds = {path[-2:]: leaf[...] for path, leaf in nnx.to_flat_state(gradients)}
    assert all(np.isfinite(leaf).all() for leaf in kinds.values())
    assert all(np.any(leaf != 0) for path, leaf in kinds.items() if path != ("k", "bias") and path != ("head", "bias"))


def test_stored_and_computed_dtypes_are_separate():
    backbone = Transformer(TINY, dtype="bfloat16", param_dtype="float32", rngs=nnx.Rngs(0))
    tokens = _tokens((1, 5))
    assert backbone.embed.weight.dtype == jnp.float32
    assert backbone.encode(tokens).dtype == jnp.bfloat16
    assert backbone(tokens).dtype == jnp.float32


def test_misshapen_calls_and_unknown_choices_are_refused():
    backbone = Transformer(TINY, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"tokens must be \[batch, length\]"):
        backbone(_tokens((5,)))
    with pytest.raises(ValueError, match=r"got \(2, 5\) and \(3,\)"):
        backbone(_tokens((2, 5)), jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match="layout 'rolled' is unknown"):
        Transformer(TINY, layout="rolled", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="attention_implementation 'flash' is unknown"):
        Transformer(TINY, attention_implementation="flash", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="cuDNN attention needs"):
        choose_implementation("cudnn", jnp.float32, 64, "gpu")


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_the_written_out_sum(kv_heads):
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, 5, heads, 6)).astype(np.float32) for heads in (4, kv_heads, kv_heads))
    lengths = np.array([5, 3], np.int32)
    expected = np.zeros_like(query)
    for row, head in np.ndindex(2, 4):
        shared, real = head // (4 // kv_heads), lengths[row]
        scores = np.exp(query[row, :, head] @ key[row, :real, shared].T / np.sqrt(6))
        expected[row, :, head] = scores / scores.sum(-1, keepdims=True) @ value[row, :real, shared]
    np.testing.assert_allclose(attend(query, key, value, lengths), expected, rtol=0, atol=1e-5)
    full = attend(query, key, value, np.array([5, 5], np.int32))
    np.testing.assert_allclose(attend(query, key, value, None), full, rtol=0, atol=1e-6)


def test_rotary_pairs_turn_by_position_times_frequency():
    x = np.random.default_rng(0).normal(size=(1, 7, 2, 8)).astype(np.float32)
    turned = np.asarray(rotate(x, rotary_table(7, 8, 100.0)))
    as_complex = x[..., :4] + 1j * x[..., 4:]
    angle = np.arange(7)[:, None, None] * 100.0 ** (-np.arange(4) / 4)
    expected = as_complex * np.exp(1j * angle)
    np.testing.assert_allclose(turned, np.concatenate([expected.real, expected.imag], -1), rtol=0, atol=1e-5)


def test_norm_rounds_before_the_weight():
    norm = RMSNorm(64, eps=1e-6, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    rng = np.random.default_rng(0)
    norm.weight[...] = jnp.asarray(rng.normal(size=64), jnp.bfloat16)
    x = jnp.asarray(rng.normal(size=(3, 64)), jnp.bfloat16)
    wide = np.asarray(x, np.float32)
    wide = wide / np.sqrt(np.mean(wide**2, -1, keepdims=True) + 1e-6)
    expected = np.asarray(jnp.asarray(wide, jnp.bfloat16) * norm.weight[...], np.float32)
    np.testing.assert_allclose(np.asarray(norm(x), np.float32), expected, rtol=2**-7, atol=0)
