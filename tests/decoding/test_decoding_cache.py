"""Prefix and dual caches: exact when refreshed at every step, equal to a row-by-row NumPy loop when not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax import decoding
from codd_jax.backbones import PRESETS, Transformer
from codd_jax.circuits import HMM
from codd_jax.decoding import BackboneDenoiser, DecodeConfig
from codd_jax.decoding.cache import cache_span, read_step, refresh
from tests.oracles.cached_transformer import CachedTransformer, numpy_params
from tests.oracles.tables import TableDenoiser

VOCAB, MASK = 30, 29
SMALL = {"width": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "ffn_width": 32}
SMALL |= {"vocab_size": VOCAB, "mask_id": MASK, "eos_id": 28, "pad_id": 28}
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 1], [3], [4, 5, 6, 7, 8]]
STRAYS = [[1, 2, 3, 7, 5, 4], [4, MASK, 6, 7, 8], [MASK, 3, MASK, MASK]]
GEN, BLOCK, STEPS = 7, 4, 6  # the last block is short


pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def model(family: str, layout: str = "stacked"):
    """(denoiser, params, oracle) of a random backbone with decided opinions."""
    config = dataclasses.replace(PRESETS[f"{family}-1m"], **SMALL)
    backbone = Transformer(config, rngs=nnx.Rngs(3))
    backbone.head.weight[...] = backbone.head.weight[...] * 4
    oracle = CachedTransformer(config, numpy_params(nnx.to_pure_dict(nnx.state(backbone, nnx.Param))))
    graphdef, params = nnx.split(backbone.with_layout(layout))
    return BackboneDenoiser(graphdef), params, oracle


def config_of(**options) -> DecodeConfig:
    common = {"gen_length": GEN, "block_length": BLOCK, "steps": STEPS, "stop_at_eos": False, "pc_frac": None}
    return DecodeConfig(**(common | options))


def decode(family, config, prompts=PROMPTS, hmm=None, layout="stacked"):
    denoiser, params, _ = model(family, layout)
    strategy, numbers = config.split(family=family, mask_id=MASK, circuit_length=None if hmm is None else hmm.length)
    canvas = decoding.make_canvas(prompts, GEN, MASK, pad_id=28, bucket=18)
    return decoding.decode(denoiser, params, canvas, strategy, numbers, hmm=hmm)


@pytest.fixture(scope="module")
def circuit():
    return HMM.random(jax.random.key(3), length=5, num_states=4, vocab_size=VOCAB, scale=1.5)


EXACT = {
    "latent": ("llada", "stacked", {"cache": "dual"}, {}),
    "any order": ("llada", "unrolled", {"cache": "dual"}, {"coupling": "any_order", "temperature": 0.7}),
    "threshold": ("dream", "stacked", {"cache": "prefix"}, {"threshold": 0.5}),
    "any order, threshold": ("dream", "unrolled", {"cache": "dual"}, {"coupling": "any_order", "threshold": 0.4}),
    "guidance": ("dream", "stacked", {"cache": "dual"}, {"cfg_scale": 0.8, "coupling": "none"}),
}


@pytest.mark.parametrize("name", EXACT)
def test_refreshed_at_every_step_it_is_exact(name, circuit):
    family, layout, cache, options = EXACT[name]
    plain = decode(family, config_of(**options), hmm=circuit, layout=layout)
    cached = decode(family, config_of(**options, **cache, cache_refresh=1), hmm=circuit, layout=layout)
    assert int((np.asarray(plain.tokens) == MASK).sum()) == 0
    np.testing.assert_array_equal(cached.tokens, plain.tokens)
    np.testing.assert_array_equal(cached.steps_used, plain.steps_used)
    np.testing.assert_array_equal(cached.pc_failures, plain.pc_failures)


FROZEN = {
    "dual": ("llada", {"cache": "dual"}, PROMPTS),
    "dual, every 2 steps": ("llada", {"cache": "dual", "cache_refresh": 2}, PROMPTS),
    "prefix": ("llada", {"cache": "prefix"}, PROMPTS),
    "dream, dual": ("dream", {"cache": "dual"}, PROMPTS),
    "dream, prefix, every 2 steps": ("dream", {"cache": "prefix", "cache_refresh": 2}, PROMPTS),
    "threshold": ("dream", {"cache": "dual", "threshold": 0.4}, PROMPTS),
    "masks in the prompt": ("llada", {"cache": "dual"}, STRAYS),
    "dream, masks in the prompt": ("dream", {"cache": "prefix"}, STRAYS),
}


@pytest.mark.parametrize("name", FROZEN)
def test_every_row_equals_a_numpy_loop_with_frozen_keys_and_values(name):
    family, options, prompts = FROZEN[name]
    out = decode(family, config_of(**options), prompts)
    for row, prompt in enumerate(prompts):
        tokens, used = model(family)[2].decode(
            prompt, GEN, BLOCK, STEPS, options["cache"], options.get("cache_refresh"), options.get("threshold")
        )
        np.testing.assert_array_equal(np.asarray(out.tokens)[row, : len(tokens)], tokens, err_msg=f"row {row}")
        assert int(out.steps_used[row]) == used


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_the_numpy_loop_tells_the_caches_apart(family):
    """Else the test above would pass with a cache that is never used."""
    oracle = model(family)[2]
    none, prefix, dual = (
        [oracle.decode(prompt, GEN, BLOCK, STEPS, cache)[0] for prompt in PROMPTS]
        for cache in ("none", "prefix", "dual")
    )
    assert none != prefix and prefix != dual and dual != none


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_logits_equal_the_exact_ones_until_a_token_changes(family):
    denoiser, params, _ = model(family)
    strategy, numbers = config_of(cache="dual").split(family=family, mask_id=MASK)
    canvas = decoding.make_canvas(PROMPTS, GEN, MASK, pad_id=28, bucket=18)
    canvas, _ = decoding.begin_block(canvas, strategy, numbers, np.int32(1))
    positions = canvas.block.start[:, None] + jnp.arange(BLOCK)

    @jax.jit
    def both(canvas):
        memory = refresh(denoiser, params, canvas, strategy, 0, BLOCK)
        later = canvas.replace(block=canvas.block.replace(step=jnp.int32(1)))
        return [read_step(denoiser, params, at, memory, strategy, numbers)(positions) for at in (canvas, later)]

    expected = denoiser(params, canvas.tokens, canvas.lengths, positions, canvas.call)
    for logits in both(canvas):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_refreshes_share_one_program_and_prefixes_four():
    def programs(**options):
        before = decoding.run_block._cache_size()
        decode("llada", config_of(**options))
        return decoding.run_block._cache_size() - before

    odd = {"remasking": "margin"}  # a strategy that no other test compiles
    assert programs(cache="dual", cache_refresh=1, **odd) == 1
    assert [programs(cache="dual", cache_refresh=k, **odd) for k in (2, 3, None)] == [0, 0, 0]
    strategy, _ = config_of(cache="prefix", gen_length=512, block_length=32).split(family="llada", mask_id=MASK)
    wide = decoding.make_canvas([[1, 2]], 512, MASK, pad_id=0, bucket=64)
    spans = [cache_span(wide, strategy, 512, 512 - 32 * block) for block in range(16)]
    assert len(set(spans)) == 4 and all(span >= 512 - 32 * block for block, span in enumerate(spans))


def test_what_cannot_be_cached_is_refused():
    with pytest.raises(ValueError, match="cache is 'suffix'; known are none, prefix, dual"):
        DecodeConfig(cache="suffix")
    with pytest.raises(ValueError, match="cache_refresh is 4 but cache='none'"):
        DecodeConfig(cache_refresh=4)
    with pytest.raises(ValueError, match="cache_refresh is 0; it must be a whole number"):
        DecodeConfig(cache="dual", cache_refresh=0)
    with pytest.raises(ValueError, match=r"cache='dual' .* block_length=None"):
        DecodeConfig(cache="dual", block_length=None)
    with pytest.raises(ValueError, match=r"cache='prefix' .* windows='cover'"):
        DecodeConfig(cache="prefix", windows="cover")
    strategy, numbers = config_of(cache="dual").split(family="llada", mask_id=MASK)
    canvas = decoding.make_canvas(PROMPTS, GEN, MASK, pad_id=28)
    with pytest.raises(ValueError, match=r"cache='dual' needs a denoiser .* TableDenoiser cannot"):
        decoding.decode(TableDenoiser(), {}, canvas, strategy, numbers)
