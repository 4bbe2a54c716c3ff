"""Questions and solutions as token ids, from a local JSONL file or the hub, in the model's own chat template."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from codd_jax.tokenizer import encode_chat, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class Example:
    """One conversation to learn from.

    Attributes:
      prompt: ids of everything before the answer, the opening of the assistant's turn included.
      solution: ids of the answer, without EOS.
    """

    prompt: tuple[int, ...]
    solution: tuple[int, ...]


def read_examples(
    source: str | pathlib.Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    question_field: str = "question",
    answer_field: str = "answer",
    system: str | None = None,
    split: str = "train",
    limit: int | None = None,
) -> list[Example]:
    """Reads pairs of question and answer, or conversations.

    Args:
      source: a JSONL file, a folder with `<split>.jsonl`, or a data set on the hub ("openai/gsm8k:main", the part
        after the colon being its configuration).
      tokenizer: with a chat template.
      question_field, answer_field: the two texts of a record. A record without the first that holds `messages`
        (a list of `{"role", "content"}`) is a conversation: its last message, the assistant's, is the solution.
      system: a system message put before every prompt.
      split: of a hub data set or a folder.
      limit: the first so many records only.

    Raises:
      ValueError: a malformed record (its line and what is wrong), nothing in the file, or no chat template.
      FileNotFoundError: a local file that does not exist. ConnectionError: the hub is out of reach.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template, and prompts are laid out in it; set tokenizer.chat_template, or use "
            "the tokenizer of the instruction-tuned checkpoint"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    records = _local_records(source, split) if is_local(source) else _hub_records(str(source), split)
    examples = []
    for place, record in itertools.islice(records, limit):
        try:
            messages, solution = _conversation(record, question_field, answer_field)
            ids = encode_text(tokenizer, solution)
            if not ids:
                raise ValueError("the solution is empty; there is nothing to learn")
            examples.append(Example(tuple(encode_chat(tokenizer, messages, system=system)), tuple(ids)))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    if not examples:
        raise ValueError(f"{source} holds no examples; one JSON object a line is wanted")
    return examples


def corpus_texts(
    source: str | pathlib.Path, *, question_field: str = "question", answer_field: str = "answer", split: str = "train"
) -> Iterator[str]:
    """All texts of a data set, questions and answers one after the other, for a tokenizer to be trained on.

    Arguments and errors as in `read_examples`.
    """
    for place, record in _local_records(source, split) if is_local(source) else _hub_records(str(source), split):
        try:
            messages, solution = _conversation(record, question_field, answer_field)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        yield from (message["content"] for message in messages)
        yield solution


def is_local(source: str | pathlib.Path) -> bool:
    """Whether a data set is meant to lie on this machine: it does, or its name is that of a file."""
    path = pathlib.Path(source).expanduser()
    named = path.suffix in (".jsonl", ".json") or str(source).startswith((".", "/", "~"))
    return isinstance(source, pathlib.Path) or named or path.exists()


def local_file(source: str | pathlib.Path, split: str = "train") -> pathlib.Path:
    """The JSONL file that a local source means; FileNotFoundError where there is none."""
    path = pathlib.Path(source).expanduser()
    path = path / f"{split}.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"no data at {path}; give a JSONL file with one object a line, a folder with {split}.jsonl, or the id of a "
            "data set on the hub"
        )
    return path


def _local_records(source: str | pathlib.Path, split: str) -> Iterator[tuple[str, Any]]:
    """(place, record) of every line that is not blank."""
    path = local_file(source, split)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                yield place, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else error
                raise ValueError(f"{place}: not JSON ({reason}); one JSON object a line is wanted") from None


def _hub_records(source: str, split: str) -> Iterable[tuple[str, Any]]:
    """(place, record) of a data set on the hub."""
    # The package takes a second to import and is of no use to local files.
    import datasets

    name, _, config = source.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ConnectionError(
            f"the data set {source!r} could not be had from the Hugging Face hub ({error}). Without network access "
            "give a JSONL file in its place"
        ) from error
    return ((f"{source}, split {split}, record {number}", row) for number, row in enumerate(rows, start=1))


def _conversation(record: Any, question_field: str, answer_field: str) -> tuple[list[dict[str, str]], str]:
    """The messages before the answer, and the answer; ValueError for a record that is neither pair nor chat."""
    if not isinstance(record, Mapping):
        raise ValueError(f"a JSON object is wanted, this is {type(record).__name__}")
    if question_field not in record and isinstance(record.get("messages"), list):
        return _chat(record["messages"])
    for field in (question_field, answer_field):
        if field not in record:
            raise ValueError(
                f"no field {field!r}; the fields here are {', '.join(map(repr, record)) or 'none'}. Name the texts' "
                "fields with question_field and answer_field"
            )
        if not isinstance(record[field], str):
            raise ValueError(f"{field!r} is {type(record[field]).__name__}; text is wanted")
    if not record[question_field].strip():
        raise ValueError(f"{question_field!r} is empty; a prompt needs some text")
    return [{"role": "user", "content": record[question_field]}], record[answer_field]


def _chat(messages: list) -> tuple[list[dict[str, str]], str]:
    """A conversation's messages but the last, and the text of that one."""
    for index, message in enumerate(messages):
        texts = [message.get(key) if isinstance(message, Mapping) else None for key in ("role", "content")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"message {index} needs the texts 'role' and 'content'; it is {str(message)[:80]}")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        last = messages[-1]["role"] if messages else "nothing"
        raise ValueError(f"a conversation ends with the assistant's answer to something; this one ends with {last!r}")
    return [{key: message[key] for key in ("role", "content")} for message in messages[:-1]], messages[-1]["content"]
