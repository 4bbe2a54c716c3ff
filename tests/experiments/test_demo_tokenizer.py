"""The demo's tokenizer: words and numbers are single tokens, and any text comes back as it went in."""

import random

import pytest

from codd_jax.tokenizer import encode_chat, encode_text, load_tokenizer
from experiments.demo_task import problems, tokenizer


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The tokenizer through its files, as every user of a bundle gets it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_tokenizer(folder)
    return load_tokenizer(folder)


def test_numbers_and_words_are_single_tokens(loaded):
    for number in range(problems.LARGEST_NUMBER + 1):
        assert len(encode_text(loaded, f" {number}")) == 1
    for word in (*problems.NAMES, *problems.ITEMS, *problems.BOXES):
        assert len(encode_text(loaded, f" {word}")) == 1
    for name in problems.NAMES:
        assert len(encode_text(loaded, name)) == 1


def test_solutions_fit_the_window(loaded):
    stream = problems.sample_problems(0, False)
    for _ in range(200):
        for solution in next(stream).solutions:
            ids = encode_text(loaded, solution)
            assert len(ids) < 32
            assert min(ids) >= len(tokenizer.SPECIALS) + 256, "a generated text needs no bytes"
            assert loaded.decode(ids) == solution


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n\t ",
        "Tom has 12 apples.",
        "£12,345.67 — naïve café 👍🏽 日本語 \u2581x",
        "<0x41><0xZZ>",
        "\x00\x7f\r\n",
        "  two  blanks ",
    ],
)
def test_any_text_round_trips(loaded, text):
    assert loaded.decode(encode_text(loaded, text)) == text


def test_random_unicode_round_trips(loaded):
    rng = random.Random(0)
    for _ in range(200):
        codes = (rng.choice([rng.randrange(0x20, 0x7F), rng.randrange(0x11_0000)]) for _ in range(40))
        text = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        assert loaded.decode(encode_text(loaded, text)) == text


def test_special_tokens_and_chat_template(loaded):
    assert (loaded.mask_token, loaded.eos_token, loaded.pad_token) == (tokenizer.MASK, tokenizer.END, tokenizer.END)
    ids = encode_chat(loaded, [{"role": "user", "content": "How many apples? "}], system="You are a helpful assistant.")
    assert loaded.decode(ids) == (
        "<|startoftext|><|system|>You are a helpful assistant.<|eot_id|><|user|>How many apples?<|eot_id|><|assistant|>"
    )
    opened = [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": "So"}]
    ids = encode_chat(loaded, opened, add_generation_prompt=False)
    assert loaded.decode(ids) == "<|startoftext|><|user|>Go on<|eot_id|><|assistant|>So"


def test_vocabulary_has_no_duplicates():
    words = tokenizer.vocabulary()
    assert len(words) == len(set(words)) and 600 <= len(words) <= 1500
