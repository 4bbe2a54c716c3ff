"""What the loop promises: batches change nothing, sweeps compile nothing, rows stop, fail and report by themselves."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax import decoding
from codd_jax.circuits import HMM
from codd_jax.decoding import DecodeConfig
from tests.oracles.tables import TableDenoiser

VOCAB, MASK, WIDTH = 13, 12, 24
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [4, 5, 6, 7, 8], [9, 1, 1, 2, 3, 4, 5]]


@pytest.fixture(scope="module")
def params():
    logits = np.random.default_rng(0).normal(0, 2.5, (32, WIDTH, VOCAB)).astype(np.float32)
    logits[..., MASK] = -30
    return {"logits": logits}


@pytest.fixture(scope="module")
def hmm():
    return HMM.random(jax.random.key(3), length=4, num_states=3, vocab_size=VOCAB)


def config_of(**options):
    common = {"steps": 8, "gen_length": 16, "block_length": 4, "stop_at_eos": False, "pc_frac": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DecodeConfig(**common | options)


def run(params, config, prompts=PROMPTS, hmm=None, stop_ids=(), denoiser=None, family="llada", gen=None, **layout):
    strategy, numbers = config.split(
        family=family, mask_id=MASK, stop_ids=stop_ids, circuit_length=None if hmm is None else hmm.length
    )
    length = config.gen_length if gen is None else gen
    canvas = decoding.make_canvas(prompts, length, MASK, pad_id=0, **{"bucket": WIDTH} | layout)
    return decoding.decode(denoiser or TableDenoiser(), params, canvas, strategy, numbers, hmm=hmm)


BACKBONE_PROMPTS = [[11, 12, 13], [40, 41, 42, 43, 44], [40, 41, 42, 43, 44], [9, 10, 11, 12, 13, 14, 15], [300]]


@pytest.mark.parametrize(
    "options",
    [
        {"coupling": "none"},
        {"temperature": 0.7, "top_p": 0.9, "coupling": "latent", "pc_frac": 0.9, "steps": 6},
        {"temperature": 0.7, "windows": "cover", "coupling": "any_order", "remasking": "entropy", "steps": 6},
    ],
    ids=["greedy", "sampled", "windows"],
)
def test_a_prompt_decodes_the_same_in_any_company(tiny, options):
    denoiser, weights, backbone = tiny("llada_tiny")
    hmm = HMM.random(jax.random.key(0), length=8, num_states=4, vocab_size=backbone.vocab_size)
    config = config_of(**{"block_length": 8, "steps": 6} | options)
    strategy, numbers = config.split(
        family="llada", mask_id=backbone.mask_id, stop_ids=(backbone.eos_id,), circuit_length=hmm.length
    )
    keys = decoding.row_keys(BACKBONE_PROMPTS, seed=3)

    def decode(which, **layout):
        prompts = [BACKBONE_PROMPTS[row] for row in which]
        canvas = decoding.make_canvas(
            prompts, config.gen_length, backbone.mask_id, backbone.pad_id, keys=keys[jnp.asarray(which)], **layout
        )
        out = decoding.decode(denoiser, weights, canvas, strategy, numbers, hmm=hmm)
        assert not np.asarray(out.pc_failures).any()
        return dict(zip(which, decoding.generations(out), strict=False))

    together = decode([0, 1, 2, 3, 4])
    for group in (decode([4, 2, 0, 3, 1]), decode([2, 4, 4, 4, 4]), decode([3], bucket=32)):
        for row, tokens in group.items():
            np.testing.assert_array_equal(tokens, together[row], err_msg=f"prompt {row}")
    drawn = "temperature" in options
    assert (together[1] != together[2]).any() == drawn, "equal prompts differ only where something is drawn"


def test_sweeps_compile_nothing(params, hmm):
    decoding.run_block.clear_cache()
    decoding.begin_block.clear_cache()
    base = config_of(coupling="latent")
    sweep = [
        {"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 3}, {"pc_temperature": 0.1}, {"pc_frac": 0.5},
        {"reverse_frac": True}, {"steps": 13}, {"steps": 40}, {"eps": 0.1}, {"alg_temp": 0.2}, {"num_samples": 2},
    ]  # fmt: skip
    run(params, base, hmm=hmm)
    for seed, options in enumerate(sweep):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = dataclasses.replace(base, **options)
        run(params, config, hmm=hmm, seed=seed)
    assert decoding.run_block._cache_size() == 1
    assert decoding.begin_block._cache_size() == 1
    for threshold in (0.3, 0.9):
        run(params, config_of(threshold=threshold), hmm=hmm)
    assert decoding.run_block._cache_size() == 2


def test_one_step_is_one_program(params):
    config = config_of()
    strategy, numbers = config.split(family="llada", mask_id=MASK)
    canvas = decoding.make_canvas(PROMPTS, 16, MASK, pad_id=0, bucket=WIDTH)
    canvas, _ = decoding.begin_block(canvas, strategy, numbers, np.int32(0))
    one = decoding.denoise_step(TableDenoiser(), params, canvas, strategy, numbers)
    assert (np.asarray(one.tokens) != np.asarray(canvas.tokens)).sum() == 2 * len(PROMPTS)
    whole = decoding.run_block(TableDenoiser(), params, canvas, strategy, numbers)
    two = decoding.denoise_step(TableDenoiser(), params, one, strategy, numbers)
    np.testing.assert_array_equal(two.tokens, whole.tokens)
    assert (np.asarray(whole.call) == 2).all() and (np.asarray(whole.steps_used) == 2).all()


def test_rows_stop_after_the_block_that_holds_a_stop_id(params):
    logits = params["logits"].copy()
    logits[:, 9, 11] = 30.0  # prompts of 3 and 5 tokens meet it in the second block, the last one in its first
    out = run({"logits": logits}, config_of(), stop_ids=(11,))
    stopped = run({"logits": logits}, config_of(stop_at_eos=True), stop_ids=(11,))
    assert not np.asarray(out.done).any() and np.asarray(stopped.done).all()
    np.testing.assert_array_equal(stopped.steps_used, [4, 4, 4, 2])
    for row, (start, end) in enumerate([(3, 11), (5, 13), (5, 13), (7, 11)]):
        np.testing.assert_array_equal(stopped.tokens[row, start:end], out.tokens[row, start:end])
        assert (np.asarray(stopped.tokens)[row, end : start + 16] == MASK).all()


def test_streaming_yields_every_block(params):
    config = config_of()
    strategy, numbers = config.split(family="llada", mask_id=MASK)
    canvas = decoding.make_canvas(PROMPTS, 16, MASK, pad_id=0, bucket=WIDTH)
    seen = [np.asarray(c.tokens) for c in decoding.decode_blocks(TableDenoiser(), params, canvas, strategy, numbers)]
    left = [[int((tokens[row] == MASK).sum()) for tokens in seen] for row in range(4)]
    assert left == [[12, 8, 4, 0]] * 4
    heard = []
    out = decoding.decode(
        TableDenoiser(), params, canvas, strategy, numbers, progress=True, on_block=lambda c: heard.append(c)
    )
    assert len(heard) == 4
    np.testing.assert_array_equal(out.tokens, seen[-1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("windows", [None, "cover"])
def test_bad_logits_are_an_error_that_names_row_and_step(params, value, windows):
    logits = params["logits"].copy()
    logits[5, 21, 4] = value  # only the longest row reaches position 21
    config = config_of(block_length=16, windows=windows)
    with pytest.raises(FloatingPointError, match="NaN or infinite in row 3 at step 5"):
        run({"logits": logits}, config)


def test_impossible_evidence_falls_back_to_the_backbone(params):
    emission = np.full((2, VOCAB), 1 / (VOCAB - 1), np.float32)
    emission[:, 4] = 0  # the circuit excludes token 4, which stands in two prompts
    emission /= emission.sum(-1, keepdims=True)
    circuit = HMM.from_probabilities([0.5, 0.5], np.full((2, 2), 0.5), emission, length=6)
    config = config_of(gen_length=5, block_length=5, steps=5, coupling="latent")
    prompts = [[1, 2], [4], [5, 6]]
    with pytest.warns(UserWarning, match="in 5 steps the circuit found"):
        out = run(params, config, prompts, circuit)
    np.testing.assert_array_equal(out.pc_failures, [0, 5, 0])
    alone = run(params, dataclasses.replace(config, coupling="none"), prompts, circuit)
    np.testing.assert_array_equal(out.tokens[1], alone.tokens[1])


def test_mismatches_are_named(params, hmm):
    config = config_of()
    strategy, numbers = config.split(family="llada", mask_id=MASK, circuit_length=4)
    canvas = decoding.make_canvas(PROMPTS, 16, MASK, pad_id=0)
    with pytest.raises(ValueError, match="needs a circuit"):
        decoding.decode(TableDenoiser(), params, canvas, strategy, numbers)
    other = HMM.random(jax.random.key(0), length=3, num_states=2, vocab_size=VOCAB)
    with pytest.raises(ValueError, match="covers 3 tokens, the strategy's windows 4"):
        decoding.decode(TableDenoiser(), params, canvas, strategy, numbers, hmm=other)
    few = dataclasses.replace(config, steps=3)
    strategy, numbers = few.split(family="llada", mask_id=MASK)
    with pytest.raises(ValueError, match="steps=3 for 4 blocks"):
        decoding.decode(TableDenoiser(), params, canvas, strategy, numbers)


def test_filling_gaps_in_a_text(params):
    texts = [[1, MASK, 3, MASK, MASK, 6], [MASK, 2, 3, 4, 5, 6, 7, MASK, 9]]
    out = run(params, config_of(block_length=16, steps=3), texts, prompt_lengths=[0, 0], gen=0)
    for row, text in enumerate(texts):
        known = np.array(text) != MASK
        tokens = np.asarray(out.tokens)[row, : len(text)]
        assert (tokens != MASK).all()
        np.testing.assert_array_equal(tokens[known], np.array(text)[known])
    np.testing.assert_array_equal(out.steps_used, [3, 2])


def test_rows_may_generate_different_lengths(params):
    both = run(params, config_of(), PROMPTS[:2], gen=[16, 6])
    alone = run(params, config_of(gen_length=6), PROMPTS[1:2])
    np.testing.assert_array_equal(both.tokens[1, :11], alone.tokens[0, :11])
    assert (np.asarray(both.tokens)[0, 3:19] != MASK).all()
