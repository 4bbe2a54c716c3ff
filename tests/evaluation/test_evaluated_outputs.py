"""Answers that come through an evaluation are those of the decoding loops, a prompt at a time."""

import jax
import numpy as np
import pytest

from codd_jax import CoDD, DecodeConfig, decoding
from codd_jax.backbones.config import config_from_huggingface
from codd_jax.circuits import HMM
from codd_jax.evaluation import TASKS, Evaluation, evaluate
from codd_jax.evaluation.adapter import build_requests
from codd_jax.io.circuit import save_circuit
from codd_jax.tokenizer import encode_text
from tests.evaluation.test_harness_runs import read_samples

# The published settings at a small length: greedy blocks for LLaDA, the one best window on Dream's full canvas.
REFERENCE = {
    "llada_tiny": {"steps": 12, "block_length": 8, "step_split": "floor", "remasking": "low_confidence"},
    "dream_tiny": {"steps": 12, "block_length": None, "windows": "best", "remasking": "entropy", "eps": 1e-3},
}


@pytest.mark.parametrize("name", REFERENCE)
def test_evaluated_answers_are_the_loops(fixtures_dir, task, tmp_path, name):
    vocab_size = config_from_huggingface(fixtures_dir / name).vocab_size
    save_circuit(tmp_path / "circuit", HMM.random(jax.random.key(0), 8, 4, vocab_size))
    model = CoDD.from_pretrained(fixtures_dir / name, tmp_path / "circuit", dtype="float32", progress=False)
    config = DecodeConfig(gen_length=24, pc_temperature=0.1, pc_frac=0.7, **REFERENCE[name])
    summary = evaluate(model, Evaluation(TASKS["gsm8k"], config, batch_size=3), task, tmp_path / "run", progress=False)
    samples = {sample["doc_id"]: sample for sample in read_samples(tmp_path / "run")}
    assert summary["total"] == len(samples) == 7
    strategy, numbers = model.split(config)
    # The seventh problem is the first once more, and draws by a seed of its own.
    for request in build_requests(task, model.tokenizer, TASKS["gsm8k"].system_prompt, limit=6)[::2]:
        prompt = encode_text(model.tokenizer, request.args[0])
        canvas = decoding.make_canvas([prompt], 24, model.config.mask_id, model.config.pad_id, bucket=64)
        out = decoding.decode(model.denoiser, model.params, canvas, strategy, numbers, hmm=model.hmm)
        (tokens,) = decoding.generations(out, model.stop_ids)
        np.testing.assert_array_equal(samples[request.doc_id]["tokens"], tokens[tokens != model.config.mask_id])
        assert samples[request.doc_id]["steps_used"] == int(out.steps_used[0])
