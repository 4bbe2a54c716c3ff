"""A stand-in for CoDD with a byte tokenizer and answers from a script: evaluation code needs nothing more."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if not loop.last %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|end|><|assistant|>{% endif %}"
)


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Every byte a token, and `</s>`; nothing is learnt, so nothing can be missing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = chat_template
    return tokenizer


@dataclasses.dataclass
class Generated:
    """The fields of a generation that evaluations read."""

    tokens: list
    text: list
    steps_used: Any
    pc_failures: Any


@dataclasses.dataclass(frozen=True)
class ScriptedDecoding:
    """Stands for a decoding configuration."""

    steps: int = 4
    gen_length: int = 16


class ScriptedModel:
    """Answers each prompt by a function of its text and the seed; dies before a chosen call."""

    def __init__(self, answer: Callable[[str, int], str], die_at_call: int | None = None):
        self.tokenizer = byte_tokenizer()
        self.calls: list[dict[str, Any]] = []
        self._answer = answer
        self._die_at_call = die_at_call

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        config: Any,
        *,
        seed: int = 0,
        batch_size: int = 8,
        system: str | None = None,
        stop_strings: Sequence[str] = (),
        progress: bool = False,
        pad_batch: bool = False,
    ) -> Generated:
        """As CoDD.generate, from the script."""
        if len(self.calls) == self._die_at_call:
            raise KeyboardInterrupt
        self.calls.append({"rows": len(prompts), "lengths": [len(p) for p in prompts], "stop_strings": stop_strings})
        texts = [self._answer(self.tokenizer.decode(prompt), seed) for prompt in prompts]
        tokens = [np.asarray(self.tokenizer(text)["input_ids"], np.int32) for text in texts]
        steps = np.asarray([config.steps + len(prompt) % 2 for prompt in prompts])
        return Generated(tokens, texts, steps, np.zeros(len(prompts), np.int32))
