"""A stand-in for CoDD with a byte tokenizer and answers from a script: evaluation code needs nothing more."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
    """The fields of a generation that evaluations read, one entry each."""

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
    """Answers each prompt by a function of its text and the seed, longest first; dies after so many answers.

    Answers finish two at a time.
    """

    def __init__(self, answer: Callable[[str, int], str], dies_after: int | None = None):
        self.tokenizer = byte_tokenizer()
        self.calls: list[dict[str, Any]] = []
        self._answer = answer
        self._dies_after = dies_after
        self.answered = 0

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        config: Any,
        *,
        seed: Sequence[int],
        batch_size: int = 8,
        stop_strings: Sequence[str] = (),
        pad_batch: bool = False,
        on_finished: Callable[[Mapping[int, Generated]], None],
    ) -> None:
        """As CoDD.generate, from the script."""
        self.calls.append({"rows": len(prompts), "lengths": [len(p) for p in prompts], "stop_strings": stop_strings})
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        for pair in (order[start : start + 2] for start in range(0, len(order), 2)):
            if self._dies_after is not None and self.answered >= self._dies_after:
                raise KeyboardInterrupt
            on_finished({row: self._answer_row(prompts[row], config, seed[row]) for row in pair})
            self.answered += len(pair)

    def _answer_row(self, prompt: Sequence[int], config: Any, seed: int) -> Generated:
        text = self._answer(self.tokenizer.decode(prompt), seed)
        tokens = np.asarray(self.tokenizer(text)["input_ids"], np.int32)
        return Generated([tokens], [text], np.array([config.steps + len(prompt) % 2]), np.zeros(1, np.int32))
