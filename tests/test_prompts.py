"""Every way of handing over prompts leads to the same ids, and bad ones are named."""

import numpy as np
import pytest

from codd_jax.prompts import encode_prompts
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
    assert encode_prompts([ids, "What is 7 + 5?", [message]], tokenizer, vocab_size=384) == [ids] * 3


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
    ],
)
def test_bad_prompts_are_named(tokenizer, prompts, message):
    with pytest.raises(ValueError, match=message):
        encode_prompts(prompts, tokenizer, vocab_size=384)


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="built without a tokenizer"):
        encode_prompts("Hi", None, vocab_size=384)
