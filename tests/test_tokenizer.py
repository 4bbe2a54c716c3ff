"""Tokenizers and chat templates against the goldens of the official classes."""

import json

import pytest

from codd_jax import tokenizer as tok

FOLDERS = ["llada_tiny", "dream_tiny", "dream_tiny_bf16"]


@pytest.fixture(params=FOLDERS)
def golden(request, fixtures_dir):
    folder = fixtures_dir / request.param
    return tok.load_tokenizer(folder), json.loads((folder / "tokenizer_goldens.json").read_text())


def test_plain_text_goldens(golden):
    tokenizer, expected = golden
    for case in expected["encode"]:
        assert tok.encode_text(tokenizer, case["text"]) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special"]


def test_chat_goldens(golden):
    tokenizer, expected = golden
    for case in expected["chat"]:
        options = {"add_generation_prompt": case["add_generation_prompt"]}
        assert tok.render_chat(tokenizer, case["messages"], **options) == case["text"]
        assert tok.encode_chat(tokenizer, case["messages"], **options) == case["ids"]


def test_string_prompt_goldens(fixtures_dir):
    """A bare question, worded as the PyTorch code words it, gives that code's ids."""
    folder = fixtures_dir / "llada_tiny"
    tokenizer = tok.load_tokenizer(folder)
    for case in json.loads((folder / "tokenizer_goldens.json").read_text())["string_prompt"]:
        message = {"role": "user", "content": f"Problem:\n{case['user']}\n\nSolution:"}
        assert tok.encode_chat(tokenizer, [message], system=case["system"]) == case["ids"]


def test_continued_answer_stays_open(fixtures_dir):
    tokenizer = tok.load_tokenizer(fixtures_dir / "dream_tiny")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "```python\n"}]
    text = tok.render_chat(tokenizer, messages, add_generation_prompt=False)
    assert text.endswith("<|im_start|>assistant\n```python\n")


def test_holes_become_mask_ids(fixtures_dir):
    tokenizer = tok.load_tokenizer(fixtures_dir / "dream_tiny")
    left, right = tok.encode_text(tokenizer, "The answer"), tok.encode_text(tokenizer, " done.")
    assert tok.encode_spans(tokenizer, "The answer<mask:3> done.", 324) == left + [324] * 3 + right
    assert tok.encode_spans(tokenizer, "<mask>The answer<|mask|>", 324) == [324, *left, 324]
    with pytest.raises(ValueError, match="nothing to fill in"):
        tok.encode_spans(tokenizer, "The answer", 324)
    with pytest.raises(ValueError, match="span of 0 tokens"):
        tok.encode_spans(tokenizer, "The <mask:0>", 324)


def test_stop_ids_hold_the_end_of_turn(fixtures_dir):
    assert tok.stop_ids(tok.load_tokenizer(fixtures_dir / "llada_tiny"), 301) == (301, 307)
    assert tok.stop_ids(tok.load_tokenizer(fixtures_dir / "dream_tiny"), 320) == (320, 322)
    assert tok.stop_ids(None, 5) == (5,)


def test_bad_input_is_named(tmp_path, fixtures_dir):
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        tok.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        tok.load_tokenizer(tmp_path)
    tokenizer = tok.load_tokenizer(fixtures_dir / "llada_tiny")
    system = {"role": "system", "content": "s"}
    with pytest.raises(ValueError, match="both system="):
        tok.render_chat(tokenizer, [system, {"role": "user", "content": "Hi"}], system="t")
    with pytest.raises(ValueError, match="'role' and 'content'"):
        tok.render_chat(tokenizer, ["Hi"])
    with pytest.raises(ValueError, match="at least one message"):
        tok.render_chat(tokenizer, [])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        tok.render_chat(tokenizer, [{"role": "user", "content": "Hi"}])


def test_continued_answer_stays_open_where_the_template_always_opens_a_turn(fixtures_dir):
    tokenizer = tok.load_tokenizer(fixtures_dir / "llada_tiny")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is"}]
    text = tok.render_chat(tokenizer, messages, add_generation_prompt=False)
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\nIt is")
