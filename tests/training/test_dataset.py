"""Records become ids in the chat template; a faulty one is named with its line."""

import json
import types

import pytest

from codd_jax.tokenizer import encode_chat, encode_text, load_tokenizer
from codd_jax.training.dataset import Example, is_local, read_examples
from experiments.demo_task.tokenizer import save_tokenizer

PAIR = {"question": "Tom has 3 apples", "answer": "#### 3"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The demo's tokenizer, which has a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder)


def write(path, *records):
    """A JSONL file; strings are written as they are."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_pairs_and_conversations(tokenizer, tmp_path):
    chat = [{"role": "user", "content": "Tom has 3"}, {"role": "assistant", "content": "apples"}]
    more = [*chat, {"role": "user", "content": "books"}, {"role": "assistant", "content": "#### 3"}]
    path = write(tmp_path / "data.jsonl", PAIR, "", {"messages": chat}, {"messages": more})
    examples = read_examples(path, tokenizer)
    ids = lambda messages: tuple(encode_chat(tokenizer, messages))  # noqa: E731
    assert examples == [
        Example(ids([{"role": "user", "content": PAIR["question"]}]), tuple(encode_text(tokenizer, "#### 3"))),
        Example(ids(chat[:1]), tuple(encode_text(tokenizer, "apples"))),
        Example(ids(more[:3]), tuple(encode_text(tokenizer, "#### 3"))),
    ]
    assert read_examples(path, tokenizer, limit=1) == examples[:1]
    assert read_examples(tmp_path, tokenizer, split="data") == examples


def test_other_fields_and_a_system_message(tokenizer, tmp_path):
    path = write(tmp_path / "data.jsonl", {"problem": "Tom has 3", "solution": "apples"})
    (example,) = read_examples(
        str(path), tokenizer, question_field="problem", answer_field="solution", system="Tom has 3 books"
    )
    user = {"role": "user", "content": "Tom has 3"}
    assert example.prompt == tuple(encode_chat(tokenizer, [user], system="Tom has 3 books"))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a JSON object is wanted, this is list"),
        ({"prompt": "x"}, "line 2: no field 'question'; the fields here are 'prompt'"),
        ({"question": "x", "answer": 3}, "line 2: 'answer' is int; text is wanted"),
        ({"question": " ", "answer": "3"}, "line 2: 'question' is empty"),
        ({"question": "x", "answer": ""}, "line 2: the solution is empty"),
        ({"messages": [{"role": "user", "content": "x"}]}, "line 2: a conversation ends with the assistant's answer"),
        ({"messages": [{"role": "user"}]}, "line 2: message 0 needs the texts"),
        ("\udcff", "line 2: not JSON"),
    ],
)
def test_a_faulty_record_is_named(tokenizer, tmp_path, bad, said):
    path = tmp_path / "data.jsonl"
    text = f"{json.dumps(PAIR)}\n{bad if isinstance(bad, str) else json.dumps(bad)}\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=said):
        read_examples(path, tokenizer)


def test_what_is_not_there(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="holds no examples"):
        read_examples(write(tmp_path / "empty.jsonl", ""), tokenizer)
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl"):
        read_examples(tmp_path / "gone.jsonl", tokenizer)
    with pytest.raises(ValueError, match="no chat template"):
        read_examples(tmp_path, types.SimpleNamespace(chat_template=None))
    with pytest.raises(ValueError, match="limit is 0"):
        read_examples(tmp_path, tokenizer, limit=0)
    assert is_local("./x") and is_local("x.jsonl") and is_local(tmp_path) and not is_local("openai/gsm8k:main")
