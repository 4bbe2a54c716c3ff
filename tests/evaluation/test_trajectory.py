"""Generations recorded step by step: the tokens of `generate`, each fixed once, windows where the circuit draws."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from codd_jax import HMM, CoDD, DecodeConfig, Transformer
from codd_jax.backbones import PRESETS
from codd_jax.evaluation.trajectory import Recorder, record
from tests.oracles.scripted_model import byte_tokenizer
from tests.oracles.tiny_evaluation import IDS, SMALL

PROMPT = list(b"Two and two?")
LENGTH = 24


def random_backbone(num_layers):
    return Transformer(
        dataclasses.replace(PRESETS["llada-1m"], **SMALL | {"num_layers": num_layers}, **IDS), rngs=nnx.Rngs(0)
    )


@pytest.fixture(scope="module")
def model():
    """A random LLaDA with decided opinions, and a circuit over 8 tokens."""
    backbone = random_backbone(num_layers=2)
    backbone.head.weight[...] = backbone.head.weight[...] * 4
    hmm = HMM.random(jax.random.key(1), length=8, num_states=4, vocab_size=IDS["vocab_size"])
    return CoDD(backbone, hmm, byte_tokenizer())


def config(**changes) -> DecodeConfig:
    """24 tokens in blocks of 8, eight steps, sampled."""
    fields = {"gen_length": LENGTH, "block_length": 8, "steps": 9, "temperature": 0.7, "pc_frac": 0.9, "stop_ids": ()}
    return DecodeConfig(**{**fields, **changes})


CASES = {
    "blocks": {},
    "alone": {"coupling": "none"},
    "cover": {"block_length": None, "windows": "cover", "steps": 6},
    "best": {"block_length": None, "windows": "best", "steps": 6},
    "threshold": {"threshold": 0.3, "coupling": "any_order", "stop_ids": tuple(range(150, 190))},
    "dual": {"cache": "dual"},
    "dual, refreshed": {"cache": "dual", "cache_refresh": 2, "threshold": 0.5},
    "prefix": {"cache": "prefix", "coupling": "none", "cfg_scale": 0.5},
}


@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_those_of_generate(model, case):
    decode = config(**CASES[case])
    made = record(model, PROMPT, decode, seed=3)
    whole = model.generate([PROMPT], decode, seed=3)
    assert list(made.answer) == whole.tokens[0].tolist()
    assert made.text == whole.text[0]
    assert len(made.steps) == whole.steps_used[0]
    cells = {}
    for step in made.steps:
        assert len(step.positions) == len(step.tokens) == len(step.probabilities)
        for place, token in zip(step.positions, step.tokens, strict=True):
            assert place not in cells and step.block[0] <= place < step.block[1]
            cells[place] = token
        assert all(0 <= value <= 1 for value in step.probabilities)
        if decode.coupling == "none":
            assert not step.windows
        else:
            assert all(window.end - window.start <= 8 for window in step.windows)
            covered = {place for window in step.windows for place in range(window.start, window.end)}
            if case != "best":
                assert set(step.positions) <= covered
    assert [cells[place] for place in sorted(cells)][: len(made.answer)] == list(made.answer)
    assert set(made.pieces) == set(cells.values())


def test_probabilities_are_the_backbones_before_the_step(model):
    decode = config(coupling="none")
    made = record(model, PROMPT, decode, seed=3)
    row = np.array(PROMPT + [model.config.mask_id] * LENGTH, np.int32)
    for step in made.steps:
        logits = model.backbone(row[None], np.array([len(row)], np.int32))[0]
        probabilities = jax.nn.softmax(logits, axis=-1)
        places = np.array(step.positions) + len(PROMPT)
        np.testing.assert_allclose(step.probabilities, probabilities[places, np.array(step.tokens)], atol=2e-5)
        row[places] = step.tokens


def test_probabilities_with_a_cache_are_those_that_the_step_saw(model):
    """A block's first step is the whole canvas's; the next ones read kept keys and values, and so differ."""
    # With one layer what is kept would be exact: keys and values of a position would come from its own token alone.
    backbone = random_backbone(num_layers=3)
    nnx.update(backbone, jax.tree.map(lambda x: 1.5 * x if x.ndim > 1 else x, nnx.state(backbone)))
    deep = CoDD(backbone, None, model.tokenizer)

    def first_block(**changes):
        steps = record(deep, PROMPT, config(coupling="none", **changes), seed=3).steps[:3]
        return [(step.positions, step.tokens, step.probabilities) for step in steps]

    exact, kept, again = first_block(), first_block(cache="dual"), first_block(cache="dual", cache_refresh=1)
    np.testing.assert_allclose(kept[0][2], exact[0][2], atol=2e-5)
    assert np.abs(np.subtract(kept[1][2], exact[1][2])).max() > 1e-3
    for one, other in zip(again, exact, strict=True):
        assert one[:2] == other[:2]
        np.testing.assert_allclose(one[2], other[2], atol=2e-5)


def test_windows_say_when_too_much_is_masked_for_the_circuit(model):
    made = record(model, PROMPT, config(pc_frac=0.5))
    first = [step for step in made.steps if len(step.positions) and step.block == (8, 16)]
    assert [window.used for step in first for window in step.windows] == [False, False, True]
    assert {(window.start, window.end) for step in first for window in step.windows} == {(8, 16)}


def test_decoding_ends_with_the_block_of_a_stop_string(model):
    whole = record(model, PROMPT, config(coupling="none"))
    stop = model.tokenizer.decode(list(whole.answer[2:4]))
    made = record(model, PROMPT, config(coupling="none"), stop_strings=(stop,))
    assert made.answer == whole.answer[:8] and len(made.steps) == 3


def test_parts_of_a_character_have_a_name(model):
    recorder = Recorder(model, PROMPT, config())
    ids = model.tokenizer("é")["input_ids"]
    assert len(ids) == 2
    assert all(recorder.piece(token) and "\ufffd" not in recorder.piece(token) for token in ids)
