"""Decoding with circuits that follow the context: equal to a Python twin that writes every window's circuit out."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax import CoDD, decoding
from codd_jax.backbones import PRESETS, Transformer
from codd_jax.circuits import HMM, Modulation
from codd_jax.decoding import BackboneDenoiser, DecodeConfig
from codd_jax.training.objective import coupled_log_likelihoods
from tests.oracles.modulated_twin import HiddenTableDenoiser, ModulatedTwin
from tests.oracles.tables import TableDenoiser

VOCAB, MASK, GEN, ROW, CALLS, WIDTH, LENGTH, STATES = 13, 12, 12, 20, 16, 6, 5, 4
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [4, 5, 6, 7, 8], [9, 1, 1, 2, 3, 4]]

pytestmark = pytest.mark.usefixtures("quick_compilation")


def modulated(width=WIDTH, vocab=VOCAB, scale=1.0, length=LENGTH, seed=0):
    """A circuit with heads of every kind that are told the noise level, random where `scale` is not 0."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(2, vocab)).astype(np.float32)
    heads = Modulation.zeros(("latent", "transition", "emission"), width, STATES, basis=basis, noise=True)
    drawn = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * scale / 30, heads)
    hmm = HMM.random(jax.random.key(seed), length, STATES, vocab, scale=1.5)
    return hmm.with_modulation(drawn.replace(basis=basis))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    tables = {name: rng.normal(0, 2.0, (CALLS, ROW, VOCAB)).astype(np.float32) for name in ("logits", "uncond")}
    for table in tables.values():
        table[..., MASK] = -30  # no mask outlives its block
    return tables | {"hidden": rng.normal(size=(CALLS, ROW, WIDTH)).astype(np.float32)}


def config_of(**options):
    common = {"gen_length": GEN, "steps": 5, "block_length": 5, "pc_frac": None, "stop_at_eos": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DecodeConfig(**{**common, "pc_temperature": 0.6, **options})


CASES = {
    "latent, sampled": ("llada", {"temperature": 0.8}),
    "latent, guided": ("llada", {"cfg_scale": 0.7}),
    "any order, locally normalised": ("llada", {"coupling": "any_order", "normalization": "local"}),
    "cover": ("dream", {"windows": "cover", "steps": 4, "temperature": 0.7}),
    "best, any order": ("dream", {"windows": "best", "coupling": "any_order", "steps": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_equal_their_twins(params, name):
    family, options = CASES[name]
    config, hmm = config_of(**options), modulated()
    strategy, numbers = config.split(family=family, mask_id=MASK, circuit_length=LENGTH)
    canvas = decoding.make_canvas(PROMPTS, GEN, MASK, pad_id=0, bucket=ROW)
    decode = decoding.decode(HiddenTableDenoiser(strategy.guided), params, canvas, strategy, numbers, hmm=hmm)
    written = hmm.replace(normalization=config.normalization or "global")
    uncond = params["uncond"] if strategy.guided else None
    twin = ModulatedTwin(params["logits"], params["hidden"], config, family, MASK, written, uncond)
    for row, prompt in enumerate(PROMPTS):
        tokens, used = twin.run(prompt, canvas.keys[row])
        np.testing.assert_array_equal(np.asarray(decode.tokens)[row, : len(tokens)], tokens, err_msg=f"row {row}")
        assert int(decode.steps_used[row]) == used
    assert int(decode.pc_failures.sum()) == 0


def test_rows_shorter_than_the_window(params):
    """Positions beyond the row are summed out, unmodulated."""
    config, hmm = config_of(gen_length=4, block_length=4, steps=3), modulated(length=9)
    strategy, numbers = config.split(family="llada", mask_id=MASK, circuit_length=9)
    canvas = decoding.make_canvas([[1, 2], [3, 4, 5]], 4, MASK, pad_id=0, bucket=ROW)
    out = decoding.decode(HiddenTableDenoiser(), params, canvas, strategy, numbers, hmm=hmm)
    twin = ModulatedTwin(params["logits"], params["hidden"], config, "llada", MASK, hmm)
    for row, prompt in enumerate([[1, 2], [3, 4, 5]]):
        tokens, _ = twin.run(prompt, canvas.keys[row])
        np.testing.assert_array_equal(np.asarray(out.tokens)[row, : len(tokens)], tokens, err_msg=f"row {row}")


def test_a_denoiser_without_hidden_states_is_refused(params):
    config = config_of()
    strategy, numbers = config.split(family="llada", mask_id=MASK, circuit_length=LENGTH)
    canvas = decoding.make_canvas(PROMPTS, GEN, MASK, pad_id=0, bucket=ROW)
    with pytest.raises(ValueError, match=r"which TableDenoiser does not show.*with_modulation\(None\)"):
        decoding.decode(TableDenoiser(), params, canvas, strategy, numbers, hmm=modulated())


SMALL = {"width": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "ffn_width": 32}


def backbone(family):
    config = dataclasses.replace(PRESETS[f"{family}-1m"], **SMALL, vocab_size=30, mask_id=29, eos_id=28, pad_id=28)
    transformer = Transformer(config, rngs=nnx.Rngs(3), layout="unrolled")
    transformer.head.weight[...] = transformer.head.weight[...] * 4
    return transformer


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_hidden_states_are_those_behind_the_logits(family):
    transformer = backbone(family)
    graphdef, params = nnx.split(transformer)
    denoiser = BackboneDenoiser(graphdef)
    tokens, positions = jnp.arange(14).reshape(2, 7), jnp.array([[0, 3, 6], [1, 2, 5]])
    features = denoiser.encode(params, tokens, jnp.array([7, 6]), jnp.zeros(2, jnp.int32))
    hidden = denoiser.hidden(params, features, positions)
    expected = denoiser.head(params, features, positions)
    np.testing.assert_allclose(hidden @ transformer.head.weight[...].T, expected, atol=1e-5)


def test_a_cache_refreshed_at_every_step_is_exact():
    model = CoDD(backbone("dream"), modulated(24, 30))
    config = config_of(gen_length=7, block_length=4, steps=6)
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 1], [3]]
    plain = model.generate(prompts, config)
    cached = model.generate(prompts, dataclasses.replace(config, cache="dual", cache_refresh=1))
    assert [row.tolist() for row in cached.tokens] == [row.tolist() for row in plain.tokens]


def test_heads_of_another_width_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="width 16 and the llada backbone's have 24"):
        CoDD(backbone("llada"), modulated(16, 30))


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_likelihoods_of_a_completion(family):
    transformer = backbone(family)
    prompt, completion = [1, 2, 3], list(range(4, 4 + 2 * LENGTH))
    hmm = modulated(24, 30)
    got = CoDD(transformer, hmm).log_likelihood(prompt, completion, num_samples=1)
    tokens = jnp.array([prompt + [29] * len(completion)])
    at = 3 + jnp.arange(2 * LENGTH)[None]
    logits, hidden = transformer(tokens, None, at, return_hidden=True)
    hidden = hidden[0, at[0] - (family == "dream")]
    expected = coupled_log_likelihoods(
        hmm,
        jax.nn.log_softmax(logits.reshape(2, LENGTH, -1)),
        jnp.array(completion).reshape(2, LENGTH),
        jnp.ones((2, LENGTH), bool),
        hidden.reshape(2, LENGTH, -1),
        jnp.ones(2),
    )
    np.testing.assert_allclose(got.coupled, expected.sum(), rtol=1e-5)
