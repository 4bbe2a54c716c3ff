"""Rows that are refilled: every request decodes as it does alone, and no step is spent waiting for a long answer."""

import jax
import numpy as np
import pytest

from codd_jax import decoding
from codd_jax.circuits import HMM
from codd_jax.decoding import DecodeConfig
from tests.oracles.decode_twins import Twin
from tests.oracles.tables import TableDenoiser

VOCAB, MASK, WIDTH, GEN, STOP = 13, 12, 48, 24, 11

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def params():
    """Tables that never predict the mask id, and the stop id about as often as any other."""
    logits = np.random.default_rng(5).normal(0, 2.5, (80, WIDTH, VOCAB)).astype(np.float32)
    logits[..., MASK] = -30
    return {"logits": logits}


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    lengths = [3, 7, 22, 5, 1, 13, 9, 3, 17, 4, 2]
    return [rng.integers(0, 11, length).tolist() for length in lengths]


def split(config, hmm=None):
    return config.split(
        family="llada", mask_id=MASK, stop_ids=(STOP,), circuit_length=None if hmm is None else hmm.length
    )


def requests_of(prompts, seed=0):
    keys = decoding.row_keys(prompts, seed)
    return decoding.Requests(prompts, [GEN] * len(prompts), [len(prompt) for prompt in prompts], keys)


def run(params, config, prompts, rows, hmm=None, refill=True, heard=None, bucket=WIDTH):
    """Rows by request, and device steps by boundary."""
    strategy, numbers = split(config, hmm)
    boundaries = list(
        decoding.decode_requests(
            TableDenoiser(), params, requests_of(prompts), strategy, numbers, rows=rows, pad_id=0, bucket=bucket,
            hmm=hmm, heard=heard, refill=refill,
        )
    )  # fmt: skip
    finished = [row for boundary in boundaries for row in boundary.finished]
    assert sorted(row.index for row in finished) == list(range(len(prompts)))
    assert sum(boundary.used_steps for boundary in boundaries) == sum(row.steps_used for row in finished)
    return {row.index: row for row in finished}, [boundary.device_steps for boundary in boundaries]


CASES = {
    "even": {"steps": 10, "temperature": 0.6},
    "coupled": {"steps": 9, "coupling": "latent", "pc_frac": None, "temperature": 0.6},
    "windows": {"windows": "cover", "coupling": "latent", "pc_frac": None, "block_length": 8, "threshold": 0.6},
}


@pytest.mark.parametrize("name", CASES)
def test_every_request_equals_its_twin(params, prompts, name):
    config = DecodeConfig(**{"gen_length": GEN, "block_length": 4, "coupling": "none"} | CASES[name])
    hmm = None
    if config.coupling != "none":
        hmm = HMM.random(jax.random.key(3), length=4, num_states=3, vocab_size=VOCAB)
    rows, _ = run(params, config, prompts, 3, hmm)
    twin = Twin(params["logits"], config, "llada", MASK, hmm, None, (STOP,))
    keys = decoding.row_keys(prompts, 0)
    ends = set()
    for index, prompt in enumerate(prompts):
        tokens, used = twin.run(prompt, keys[index])
        np.testing.assert_array_equal(rows[index].tokens, tokens, err_msg=f"request {index}")
        assert (rows[index].steps_used, rows[index].begin) == (used, len(prompt))
        ends.add((rows[index].tokens == MASK).sum())
    assert len(ends) > 1, "the answers must end in different blocks for this to test anything"


def test_refilled_rows_do_not_wait(params, prompts):
    """Device steps stay near what the answers need; without refilling they do not."""
    config = DecodeConfig(gen_length=GEN, block_length=4, threshold=0.5, coupling="none", temperature=0.6)
    many = [[*prompt, n % 11] for n in range(8) for prompt in prompts if len(prompt) < 10]
    rows, device = run(params, config, many, 3)
    needed = sum(row.steps_used for row in rows.values())
    # Only where the last row has no company left may steps be lost.
    assert needed <= sum(device) <= needed + 3 * GEN
    alone, waiting = run(params, config, many, 3, refill=False)
    assert sum(waiting) > 1.2 * needed
    for index in rows:
        np.testing.assert_array_equal(alone[index].tokens, rows[index].tokens)
        assert alone[index].steps_used == rows[index].steps_used


def test_a_row_that_was_heard_enough_of_is_replaced(params, prompts):
    config = DecodeConfig(gen_length=GEN, block_length=4, steps=12, coupling="none", stop_at_eos=False)
    rows, _ = run(params, config, prompts, 3)
    heard, device = run(params, config, prompts, 3, heard=lambda ids: len(ids) >= 8)
    assert sum(device) == 4 * 12  # eleven answers of four steps, and an empty row in the last round
    for index, row in heard.items():
        assert row.steps_used == 4 and rows[index].steps_used == 12
        known = row.tokens != MASK
        assert known.sum() == row.begin + 8
        np.testing.assert_array_equal(row.tokens[known], rows[index].tokens[known])


def test_a_run_compiles_one_program_a_width(params, prompts):
    config = DecodeConfig(gen_length=GEN, block_length=4, steps=12, coupling="none", remasking="margin")
    before = decoding.run_block._cache_size()
    narrowing, _ = run(params, config, prompts, 3, bucket=WIDTH // 3)
    assert decoding.run_block._cache_size() - before == 2
    whole, _ = run(params, config, prompts, 3)
    assert decoding.run_block._cache_size() - before == 2
    for index in whole:
        np.testing.assert_array_equal(narrowing[index].tokens, whole[index].tokens)


def test_bad_logits_name_the_request(params):
    logits = params["logits"].copy()
    logits[2, 30, 4] = np.nan
    config = DecodeConfig(gen_length=GEN, block_length=4, steps=12, coupling="none", stop_at_eos=False)
    with pytest.raises(FloatingPointError, match="row 5 at step 2"):
        run({"logits": logits}, config, [[1]] * 5 + [[1] * 25], 2)
