"""Text to token ids and back: the checkpoint's own tokenizer and chat template, without PyTorch or remote code."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import jinja2
from tokenizers import Tokenizer as BackendTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

# Ends of an assistant's turn in the two families' chat templates; decoding stops at them as it does at EOS.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>")

_MASK_SPAN = re.compile(r"<mask(?::(\d+))?>")

Message = dict[str, str]


def load_tokenizer(folder: str | pathlib.Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a checkpoint folder.

    Args:
      folder: holds `tokenizer.json`, or `vocab.json` and `merges.txt` (Dream), beside `tokenizer_config.json`.

    Returns:
      A fast tokenizer. Class names and `auto_map` entries that ask for code from the checkpoint are not followed:
      LLaDA's and Dream's tokenizers are byte-level BPEs that need none.

    Raises:
      FileNotFoundError: there is no tokenizer in the folder.
      ValueError: a tokenizer file cannot be read.
    """
    folder = pathlib.Path(folder)
    has_json = (folder / "tokenizer.json").is_file()
    if not has_json and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise FileNotFoundError(
            f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json with merges.txt. "
            "Copy the tokenizer files of the original checkpoint there."
        )
    try:
        return _transformers().PreTrainedTokenizerFast.from_pretrained(folder) if has_json else _from_merges(folder)
    except Exception as error:  # the tokenizers library raises bare Exception for malformed files
        raise ValueError(f"the tokenizer in {folder} cannot be read ({error}); fetch its files again") from error


def _from_merges(folder: pathlib.Path) -> PreTrainedTokenizerBase:
    """A tokenizer from Qwen2's file pair, whose special tokens are the declared ones alone.

    Loading it as Qwen2's would also hide the chat markers from decoded text, which the checkpoint's own class does not.
    """
    loaded = _transformers().Qwen2Tokenizer.from_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    roles = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token")
    named = {role: _text(settings[role]) for role in roles if settings.get(role)}
    extra = [_text(token) for token in settings.get("additional_special_tokens", [])]
    backend = json.loads(loaded.backend_tokenizer.to_str())
    for token in backend["added_tokens"]:
        token["special"] = token["content"] in {*named.values(), *extra}
    tokenizer = _transformers().PreTrainedTokenizerFast(
        tokenizer_object=BackendTokenizer.from_str(json.dumps(backend)),
        additional_special_tokens=extra,
        clean_up_tokenization_spaces=bool(settings.get("clean_up_tokenization_spaces", False)),
        **named,
    )
    tokenizer.chat_template = loaded.chat_template
    return tokenizer


def _transformers() -> ModuleType:
    """The transformers package, imported when a tokenizer is first loaded."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises installing PyTorch
    import transformers

    return transformers


def _text(token: str | dict) -> str:
    return token["content"] if isinstance(token, dict) else token


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text as it stands: nothing is put around it; special tokens written out in it are recognised."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    system: str | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Ids of a conversation in the model's own chat template.

    Args:
      messages: `[{"role": ..., "content": ...}, ...]`.
      system: put before the messages as a system message; an error if the messages already begin with one.
      add_generation_prompt: open the assistant's turn; False leaves a last message of the assistant open, to be
        continued.

    Raises:
      ValueError: no chat template, a malformed message, or two system messages.
    """
    return encode_text(
        tokenizer, render_chat(tokenizer, messages, system=system, add_generation_prompt=add_generation_prompt)
    )


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    system: str | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation in the model's chat template; arguments and errors as in `encode_chat`."""
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template; pass token ids (encode_text gives those of plain text) in place of "
            "messages, or set tokenizer.chat_template"
        )
    messages = list(messages)
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"message {index} is {message!r}; a message is a dict with the keys 'role' and 'content'")
    if not messages:
        raise ValueError("a conversation needs at least one message")
    if system is not None:
        if messages[0]["role"] == "system":
            raise ValueError("both system= and a first message with role 'system' were given; give one of them")
        messages = [{"role": "system", "content": system}, *messages]
    continued = not add_generation_prompt and messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt and not continued,
            continue_final_message=continued,
        )
    except jinja2.TemplateError as error:
        raise ValueError(f"the model's chat template refuses this conversation: {error}") from error


def encode_spans(tokenizer: PreTrainedTokenizerBase, text: str, mask_id: int) -> list[int]:
    """Ids of a text with holes: `<mask>` is one masked token, `<mask:8>` a span of eight.

    The tokenizer's own mask token, written out, counts as a hole as well.

    Raises:
      ValueError: the text holds no hole, or a span of no tokens.
    """
    ids: list[int] = []
    start = 0
    for match in _MASK_SPAN.finditer(text):
        count = int(match[1] or 1)
        if count < 1:
            raise ValueError(f"{match[0]!r} is a span of {count} tokens; a span has at least one")
        ids += encode_text(tokenizer, text[start : match.start()]) + [mask_id] * count
        start = match.end()
    ids += encode_text(tokenizer, text[start:])
    if mask_id not in ids:
        raise ValueError(
            "the text holds nothing to fill in: mark holes as <mask> (one token) or <mask:8> (a span of eight)"
        )
    return ids


def stop_ids(tokenizer: PreTrainedTokenizerBase | None, eos_id: int) -> tuple[int, ...]:
    """The ids after which nothing is said any more: EOS and the end of a chat turn, where the tokenizer has one."""
    ends = {eos_id}
    if tokenizer is not None:
        vocabulary = tokenizer.get_vocab()
        ends |= {vocabulary[token] for token in _TURN_ENDS if token in vocabulary}
    return tuple(sorted(ends))
