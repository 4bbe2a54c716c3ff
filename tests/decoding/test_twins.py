"""The jitted loops against their plain Python twin on random logit tables, greedy and sampled, row by row."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest

from codd_jax import decoding
from codd_jax.circuits import HMM
from codd_jax.decoding import DecodeConfig
from tests.oracles.decode_twins import Twin
from tests.oracles.tables import TableDenoiser

VOCAB, MASK, GEN, WIDTH, CALLS = 13, 12, 16, 24, 32
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [4, 5, 6, 7, 8], [9, 1, 1, 2, 3, 4, 5]]
STOPS = (0, 11)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    tables = {name: rng.normal(0, 2.5, (CALLS, WIDTH, VOCAB)).astype(np.float32) for name in ("logits", "uncond")}
    return tables


@pytest.fixture(scope="module")
def plain(params):
    """Tables that never predict the mask id, so that no mask outlives its block."""
    ids = np.arange(VOCAB)
    return {name: np.where(ids == MASK, -30.0, table).astype(np.float32) for name, table in params.items()}


@pytest.fixture(scope="module")
def hmm():
    return HMM.random(jax.random.key(3), length=5, num_states=4, vocab_size=VOCAB, scale=1.5)


def check(params, config, family, hmm=None, prompts=PROMPTS, seed=0):
    """Every row of one batch equals its twin; returns the canvas."""
    strategy, numbers = config.split(
        family=family, mask_id=MASK, stop_ids=STOPS, circuit_length=None if hmm is None else hmm.length
    )
    canvas = decoding.make_canvas(prompts, config.gen_length, MASK, pad_id=0, seed=seed, bucket=WIDTH)
    out = decoding.decode(TableDenoiser(strategy.guided), params, canvas, strategy, numbers, hmm=hmm)
    twin = Twin(
        params["logits"], config, family, MASK, hmm if strategy.coupling != "none" else None,
        params["uncond"] if strategy.guided else None, strategy.stop_ids,
    )  # fmt: skip
    for row, prompt in enumerate(prompts):
        tokens, used = twin.run(prompt, canvas.keys[row])
        np.testing.assert_array_equal(np.asarray(out.tokens)[row, : len(tokens)], tokens, err_msg=f"row {row}")
        assert int(out.steps_used[row]) == used
    return out


def config_of(**options) -> DecodeConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DecodeConfig(**{"gen_length": GEN, "steps": 7, "block_length": 5, "pc_temperature": 0.6} | options)


SAMPLED = {"temperature": 0.8}
BACKBONE = {
    "greedy blocks": ("llada", {}),
    "sampled blocks": ("llada", SAMPLED),
    "sampled margin, guided": ("llada", {"temperature": 1.3, "remasking": "margin", "cfg_scale": 0.7}),
    "entropy, more steps than tokens": ("llada", {"remasking": "entropy", "steps": 30, "temperature": 0.5}),
    "random": ("llada", {"remasking": "random"}),
    "stop ids": ("llada", {"stop_at_eos": True, "steps": 16, "block_length": 4}),
    "dream nucleus": ("dream", {"temperature": 0.7, "top_p": 0.8, "remasking": "entropy", "block_length": None}),
    "dream top-k, drawn positions": ("dream", {"temperature": 1.0, "top_k": 4, "alg_temp": 0.3, "block_length": None}),
    "dream margin, greedy": ("dream", {"remasking": "topk_margin", "block_length": None}),
    "dream blocks, topprob": ("dream", {"remasking": "topprob", "temperature": 0.9, "top_p": 0.7}),
    "threshold": ("llada", {"threshold": 0.6, "block_length": 8}),
    "threshold factor": ("dream", {"threshold_factor": 0.9, "block_length": 8, "temperature": 0.6}),
    "best window, no circuit": ("dream", {"windows": "best", "block_length": 6, "window_remasking": "margin"}),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONE)
def test_backbone_alone(plain, name):
    family, options = BACKBONE[name]
    check(plain, config_of(**{"stop_at_eos": False} | options), family)


COUPLED = {
    "latent": ("llada", {"pc_frac": None}),
    "latent, sampled, below a share": ("llada", {"pc_frac": 0.7, **SAMPLED}),
    "latent, reversed": ("llada", {"pc_frac": 0.5, "reverse_frac": True}),
    "latent, sharpened as coupled": ("llada", {"pc_frac": None, "pc_temperature_on": "coupled", **SAMPLED}),
    "short blocks in a longer window": ("dream", {"block_length": 3, "pc_frac": None, "temperature": 0.9}),
    "any order": ("llada", {"coupling": "any_order", "pc_frac": None}),
    "any order, sampled": ("dream", {"coupling": "any_order", "pc_frac": 0.9, "remasking": "entropy", **SAMPLED}),
    "cover": ("dream", {"windows": "cover", "pc_frac": None, "steps": 4, **SAMPLED}),
    "cover, other ranking": ("dream", {"windows": "cover", "pc_frac": 0.9, "window_remasking": "entropy"}),
    "cover inside blocks": ("llada", {"windows": "cover", "block_length": 8, "pc_frac": None}),
    "cover, any order": ("dream", {"windows": "cover", "coupling": "any_order", "pc_frac": None, "steps": 4}),
    "cover, threshold": ("dream", {"windows": "cover", "threshold": 0.5, "pc_frac": None}),
    "best": ("dream", {"windows": "best", "pc_frac": 0.9, "remasking": "entropy", "steps": 5}),
    "best, any order": ("dream", {"windows": "best", "coupling": "any_order", "pc_frac": None, "steps": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", COUPLED)
def test_with_circuit(plain, hmm, name):
    family, options = COUPLED[name]
    check(plain, config_of(**{"stop_at_eos": False} | options), family, hmm)


@pytest.mark.parametrize("coupling", ["latent", "any_order"])
def test_local_normalization(plain, hmm, coupling):
    config = config_of(coupling=coupling, pc_frac=None, stop_at_eos=False)
    check(plain, config, "llada", hmm.replace(normalization="local"))


def test_configured_normalization_overrides_the_circuits_own(plain, hmm):
    local = config_of(pc_frac=None, stop_at_eos=False, normalization="local")
    out = check(plain, dataclasses.replace(local, normalization=None), "llada", hmm.replace(normalization="local"))
    strategy, numbers = local.split(family="llada", mask_id=MASK, circuit_length=hmm.length)
    canvas = decoding.make_canvas(PROMPTS, GEN, MASK, pad_id=0, bucket=WIDTH)
    again = decoding.decode(TableDenoiser(), plain, canvas, strategy, numbers, hmm=hmm)
    np.testing.assert_array_equal(again.tokens, out.tokens)


def test_masks_left_by_a_predicted_mask_id_compete_later(params):
    out = check(params, config_of(stop_at_eos=False, temperature=1.0, block_length=3), "llada")
    assert (np.asarray(out.tokens) == MASK).any()


@pytest.mark.parametrize("options", [{}, {"pc_frac": None}, {"coupling": "any_order", "pc_frac": None}])
def test_masks_in_the_prompt_compete(params, hmm, options):
    prompts = [[1, MASK, 3], [MASK, MASK, 6, 7, 8], [4, 5, 6, 7, 8], [9, 1, MASK, 2, 3, 4, 5]]
    config = config_of(stop_at_eos=False, **options)
    check(params, config, "llada", hmm if options else None, prompts)


def test_rows_shorter_than_the_window(plain):
    hmm = HMM.random(jax.random.key(4), length=9, num_states=3, vocab_size=VOCAB)
    for windows in (None, "cover"):
        config = config_of(gen_length=5, block_length=5, steps=3, pc_frac=None, stop_at_eos=False, windows=windows)
        check(plain, config, "llada", hmm, [[1, 2], [3, 4, 5]])
