"""What a user may hand to `generate`, as one list of id lists: strings, conversations or ids, one or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from codd_jax.tokenizer import Message, encode_chat, encode_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[int] | Sequence[Message] | Message


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
        as do conversations (lists of `{"role", "content"}`, or one such message); lists of ids are taken as they are.
      tokenizer: needed for strings and conversations.
      vocab_size: ids must lie below it.
      system: a system message put before strings and conversations.

    Raises:
      ValueError: nothing to do, an empty prompt, an id outside the vocabulary, text without a tokenizer, or what is no
        prompt at all.
    """
    several = _listed(prompts)
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
    several = _listed(texts)
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


def check_ids(ids: Sequence[int], what: str, vocab_size: int) -> list[int]:
    """Token ids as plain integers; `what` names them in errors.

    Raises:
      ValueError: not a flat list of whole numbers, or an id outside the vocabulary.
    """
    try:
        found = np.asarray(ids)
    except ValueError:  # lists within lists, of different lengths
        found = np.asarray(None)
    if found.ndim == 1 and found.size == 0:
        return []
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"{what} is neither text, messages nor a flat list of token ids: {str(ids)[:60]}")
    if found.min() < 0 or found.max() >= vocab_size:
        worst = found.min() if found.min() < 0 else found.max()
        raise ValueError(f"{what} holds the id {worst}; the model's vocabulary has the ids 0 … {vocab_size - 1}")
    return found.tolist()


def check_seed(seed: int) -> int:
    """The seed as a plain integer; ValueError for what is none, or does not fit 64 bits."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}; it must be a whole number from -2**63 to 2**63 - 1")
    return int(seed)


def check_seeds(seed: int | Sequence[int], num_samples: int) -> int | list[int]:
    """`check_seed` of one seed, or of one for each prompt, which all samples of that prompt share."""
    if isinstance(seed, Sequence | np.ndarray):
        return [check_seed(each) for each in seed for _ in range(num_samples)]
    return check_seed(seed)


def _listed(prompts) -> list:
    """One prompt or many as a list of prompts."""
    if isinstance(prompts, str | dict):
        return [prompts]
    if not isinstance(prompts, Sequence) and not (isinstance(prompts, np.ndarray) and prompts.ndim):
        raise ValueError(
            f"prompts is {str(prompts)[:60]}; it must be text, messages, token ids, or a list of such prompts"
        )
    if isinstance(prompts, np.ndarray):
        return [prompts] if prompts.ndim == 1 else list(prompts)
    single = len(prompts) > 0 and isinstance(prompts[0], dict | int | np.integer)
    return [prompts] if single else list(prompts)


def _encode(index: int, prompt: Prompt, tokenizer, vocab_size: int, system: str | None) -> list[int]:
    if isinstance(prompt, dict):
        prompt = [prompt]
    if isinstance(prompt, str) and not prompt.strip():
        raise ValueError(f"prompt {index} is empty; every prompt needs at least one token")
    if isinstance(prompt, str) or (isinstance(prompt, Sequence) and len(prompt) and isinstance(prompt[0], dict)):
        tokenizer = require_tokenizer(tokenizer, f"prompt {index}")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return encode_chat(tokenizer, messages, system=system)
    ids = check_ids(prompt, f"prompt {index}", vocab_size)
    if not ids:
        raise ValueError(f"prompt {index} is empty; every prompt needs at least one token")
    return ids
