"""The demo's training, shortened: rows as decoding lays them out, falling losses, a whole bundle."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from codd_jax import CoDD, DecodeConfig
from codd_jax.tokenizer import encode_chat, encode_text, load_tokenizer
from experiments.demo_task import data, train
from experiments.demo_task.problems import PHRASINGS, sample_problems
from experiments.demo_task.tokenizer import save_tokenizer

SHORT = train.Recipe(
    backbone_steps=40, backbone_batch=4, circuit_steps=20, circuit_batch=8, cached_windows=32, num_states=4
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The demo's tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture
def narrow(monkeypatch):
    """Training with a backbone that compiles and runs fast."""
    full = train.backbone_config
    monkeypatch.setattr(
        train,
        "backbone_config",
        lambda tokenizer: dataclasses.replace(
            full(tokenizer), width=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, ffn_width=24
        ),
    )


def test_rows_are_prompt_solution_and_eos(tokenizer):
    problems = list(itertools.islice(sample_problems(0, False), 20))
    solutions = [problem.solution(row % len(PHRASINGS)) for row, problem in enumerate(problems)]
    rows = data.encode_rows(tokenizer, problems, solutions)
    assert rows.tokens.shape == (20, data.PROMPT_LIMIT + data.WINDOW)
    for row, (problem, solution) in enumerate(zip(problems, solutions, strict=True)):
        prompt = encode_chat(tokenizer, [{"role": "user", "content": problem.question}])
        answer = encode_text(tokenizer, solution)
        np.testing.assert_array_equal(rows.tokens[row, : len(prompt)], prompt)
        assert rows.starts[row] == len(prompt) and rows.lengths[row] == len(prompt) + data.WINDOW
        window = rows.tokens[row, len(prompt) : len(prompt) + data.WINDOW]
        np.testing.assert_array_equal(window[: len(answer)], answer)
        assert (window[len(answer) :] == tokenizer.eos_token_id).all()


def test_rows_that_do_not_fit_are_refused(tokenizer):
    problem = next(sample_problems(0, False))
    with pytest.raises(ValueError, match="31"):
        data.encode_rows(tokenizer, [problem], ["Tom has " * 20])


def test_batches_are_reproducible(tokenizer):
    first, again = (list(itertools.islice(data.sample_rows(tokenizer, 0, 3, False), 2)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first[0].tokens != first[1].tokens).any()


def test_the_backbone_is_about_a_million_weights(tokenizer):
    config = train.backbone_config(tokenizer)
    assert 0.9e6 < config.num_params < 1.2e6
    assert config.num_heads == 8 and config.max_length >= 4096 and config.vocab_size >= len(tokenizer)


def test_a_short_training_makes_a_bundle(tmp_path, narrow):
    facts = train.train_bundle(tmp_path, SHORT, progress=False)
    assert json.loads((tmp_path / "training.json").read_text()) == facts
    # The untrained loss is about the logarithm of the vocabulary, 6.7 nats.
    assert facts["held_out_nats_per_hidden_token"]["1.0"]["backbone"] < 5.5
    model = CoDD.from_pretrained(tmp_path, circuit=tmp_path, dtype="float32")
    assert model.hmm.num_states == 4 and model.hmm.length == data.WINDOW
    out = model.generate(["Tom has 2 apples."], DecodeConfig(steps=2, gen_length=32, block_length=32, pc_frac=None))
    assert len(out.text) == 1
    again = train.train_bundle(tmp_path / "again", SHORT, progress=False)
    assert again["held_out_nats_per_hidden_token"] == facts["held_out_nats_per_hidden_token"]


def test_a_diverging_training_says_so(tokenizer, narrow):
    with pytest.raises(ValueError, match="learning rate"):
        train.train_backbone(tokenizer, dataclasses.replace(SHORT, backbone_steps=100, backbone_rate=1e30), False)
