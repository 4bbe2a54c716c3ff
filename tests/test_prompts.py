"""Every way of handing over prompts leads to the same ids, and bad ones are named."""

import types

import numpy as np
import pytest

from codd_jax.likelihood import log_likelihood
from codd_jax.prompts import check_seed, encode_prompts
from codd_jax.tokenizer import encode_chat, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(fixtures_dir):
    return load_tokenizer(fixtures_dir / "llada_tiny")


def test_one_prompt_and_many_in_every_form(tokenizer):
    message = {"role": "user", "content": "What is 7 + 5?"}
    ids = encode_chat(tokenizer, [message])
    for prompts in ("What is 7 + 5?", [message], ids, np.asarray(ids)):
        assert encode_prompts(prompts, tokenizer, vocab_size=384) == [ids]
        assert encode_prompts([prompts, prompts], tokenizer, vocab_size=384) == [ids, ids]
    assert encode_prompts([ids, "What is 7 + 5?", [message], message], tokenizer, vocab_size=384) == [ids] * 4
    assert encode_prompts(message, tokenizer, vocab_size=384) == [ids]


def test_system_message(tokenizer):
    message = {"role": "user", "content": "Hi"}
    with_system = encode_chat(tokenizer, [{"role": "system", "content": "Be brief."}, message])
    assert encode_prompts("Hi", tokenizer, vocab_size=384, system="Be brief.") == [with_system]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        ("", "prompt 0 is empty"),
        ([[1, 2], []], "prompt 1 is empty"),
        (["Hi", "  "], "prompt 1 is empty"),
        ([1, 384], "holds the id 384.* 0 … 383"),
        ([[3, -1]], "holds the id -1"),
        ([[0.5, 1.0]], "flat list of token ids"),
        ([[5], 7], "prompt 1 is neither text, messages nor a flat list of token ids: 7"),
        ([7, [5, 6]], "prompt 0 is neither"),
        ([1.5], "prompt 0 is neither"),
        ([None], "prompt 0 is neither"),
        (None, "prompts is None"),
        (5, "prompts is 5"),
        ({"content": "Hi"}, "keys 'role' and 'content'"),
    ],
)
def test_bad_prompts_are_named(tokenizer, prompts, message):
    with pytest.raises(ValueError, match=message):
        encode_prompts(prompts, tokenizer, vocab_size=384)


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="built without a tokenizer"):
        encode_prompts("Hi", None, vocab_size=384)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 1.5, None, True])
def test_seeds_that_are_none_are_refused(seed):
    with pytest.raises(ValueError, match="seed is"):
        check_seed(seed)
    assert check_seed(np.int64(-1)) == -1


@pytest.mark.parametrize("completion", [[5, 384], [-1], [1.5], 7, None])
def test_completions_outside_the_vocabulary_are_not_scored(completion):
    config = types.SimpleNamespace(vocab_size=384, mask_id=304)
    with pytest.raises(ValueError, match=r"the completion (holds the id|is neither)"):
        log_likelihood(None, None, config, None, [1, 2], completion)
