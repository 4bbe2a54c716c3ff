"""A backbone from scratch: its tokenizer spells any text, its loss falls, a stopped run ends as an undisturbed one."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from codd_jax.tokenizer import encode_text, load_tokenizer
from codd_jax.training import pretraining
from codd_jax.training.checkpoints import TrainingCheckpoints
from codd_jax.training.dataset import corpus_texts, read_examples
from codd_jax.training.pretraining import Pretraining, pretrain, small_llada
from codd_jax.training.text_tokenizer import train_text_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A file of forty sums, and the folder of a tokenizer trained on it."""
    folder = tmp_path_factory.mktemp("corpus")
    file = folder / "train.jsonl"
    pairs = [{"question": f"What is {a} plus {b}?", "answer": f"It is {a + b}."} for a in range(8) for b in range(5)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    train_text_tokenizer(corpus_texts(file), 280, folder)
    return file, folder


RECIPE = Pretraining(steps=6, batch=4, window=8, bucket=64, max_length=64, save_every=3, warmup=1)


@pytest.fixture(scope="module")
def task(corpus):
    file, folder = corpus
    tokenizer = load_tokenizer(folder)
    return small_llada(tokenizer, 16, 1, 2), read_examples(file, tokenizer)


def test_any_text_is_spelled_and_digits_stand_alone(corpus):
    tokenizer = load_tokenizer(corpus[1])
    text = "naïve 数 <|eot|> 1204\n\ttabs"
    ids = encode_text(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert len(encode_text(tokenizer, "1204")) == 4
    assert len(encode_text(tokenizer, "What is")) < 5  # learnt from the corpus


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no room for 263"):
        train_text_tokenizer(["text"], 200, tmp_path)


def test_the_loss_falls_below_that_of_guessing(task, tmp_path):
    config, examples = task
    pretrain(config, examples, Pretraining(**{**RECIPE.__dict__, "steps": 100, "rate": 1e-2}), tmp_path, progress=False)
    losses = json.loads((tmp_path / "history.json").read_text())["loss"]
    assert [step for step, _ in losses] == [50, 100]
    assert losses[-1][1] < 0.3 * np.log(config.vocab_size)


def test_a_stopped_run_ends_as_an_undisturbed_one(task, tmp_path, monkeypatch):
    config, examples = task
    whole = pretrain(config, examples, RECIPE, tmp_path / "whole", progress=False)
    save = TrainingCheckpoints.save

    def save_and_stop(self, step, *rest):
        save(self, step, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretraining.TrainingCheckpoints, "save", save_and_stop)
        pretrain(config, examples, RECIPE, tmp_path / "stopped", progress=False)
    continued = pretrain(config, examples, RECIPE, tmp_path / "stopped", progress=False)
    for one, other in zip(*(jax.tree.leaves(nnx.state(x)) for x in (whole, continued)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_recipe_in_the_same_folder_is_refused(task, tmp_path):
    config, examples = task
    pretrain(config, examples, RECIPE, tmp_path, progress=False)
    with pytest.raises(ValueError, match="seed"):
        pretrain(config, examples, Pretraining(**{**RECIPE.__dict__, "seed": 1}), tmp_path, progress=False)
