"""What a user may hand to `generate`, as one list of id lists: strings, conversations or ids, one or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from codd_jax.tokenizer import Message, encode_chat, encode_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[int] | Sequence[Message]


def encode_prompts(
    prompts: Prompt | Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    vocab_size: int,
    system: str | None = None,
) -> list[list[int]]:
    """Ids of every prompt.

    Args:
      prompts: one prompt or a list of them. A string is a user's message and goes through the model's chat template,
        as do conversations (lists of `{"role", "content"}`); lists of ids are taken as they are.
      tokenizer: needed for strings and conversations.
      vocab_size: ids must lie below it.
      system: a system message put before strings and conversations.

    Raises:
      ValueError: nothing to do, an empty prompt, an id outside the vocabulary, or text without a tokenizer.
    """
    several = [prompts] if _is_single(prompts) else list(prompts)
    if not several:
        raise ValueError("there are no prompts; pass at least one")
    return [_encode(index, prompt, tokenizer, vocab_size, system) for index, prompt in enumerate(several)]


def encode_holes(
    texts: str | Sequence[int] | Sequence[str | Sequence[int]],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    vocab_size: int,
    mask_id: int,
) -> list[list[int]]:
    """Ids of texts with holes: `<mask>` and `<mask:8>` in strings, the mask id in lists of ids.

    Raises:
      ValueError: nothing to do, a text without a hole, an id outside the vocabulary, or text without a tokenizer.
    """
    several = [texts] if _is_single(texts) else list(texts)
    rows = []
    for index, text in enumerate(several):
        if isinstance(text, str):
            rows.append(encode_spans(require_tokenizer(tokenizer, f"text {index}"), text, mask_id))
            continue
        rows += encode_prompts([text], tokenizer, vocab_size=vocab_size)
        if mask_id not in rows[-1]:
            raise ValueError(f"text {index} holds no mask id ({mask_id}): there is nothing to fill in")
    if not rows:
        raise ValueError("there are no texts to fill in; pass at least one")
    return rows


def require_tokenizer(tokenizer: PreTrainedTokenizerBase | None, what: str) -> PreTrainedTokenizerBase:
    """The tokenizer, or a ValueError saying what needed one."""
    if tokenizer is None:
        raise ValueError(
            f"{what} is text and this model was built without a tokenizer; pass token ids, or load the model from a "
            "folder that holds its tokenizer"
        )
    return tokenizer


def _is_single(prompts) -> bool:
    if isinstance(prompts, str):
        return True
    if isinstance(prompts, np.ndarray):
        return prompts.ndim == 1
    return len(prompts) > 0 and isinstance(prompts[0], dict | int | np.integer)


def _encode(index: int, prompt: Prompt, tokenizer, vocab_size: int, system: str | None) -> list[int]:
    if len(prompt) == 0 or (isinstance(prompt, str) and not prompt.strip()):
        raise ValueError(f"prompt {index} is empty; every prompt needs at least one token")
    if isinstance(prompt, str) or isinstance(prompt[0], dict):
        tokenizer = require_tokenizer(tokenizer, f"prompt {index}")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return encode_chat(tokenizer, messages, system=system)
    ids = np.asarray(prompt)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"prompt {index} is neither text, messages nor a flat list of token ids: {str(prompt)[:60]}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        worst = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(
            f"prompt {index} holds the id {worst}; the model's vocabulary has the ids 0 … {vocab_size - 1}"
        )
    return ids.tolist()
