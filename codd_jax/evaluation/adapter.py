"""lm-eval's view of a model: chats in, text out; scoring and prompts stay lm-eval's."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from codd_jax.tokenizer import Message, render_chat


class HarnessModel(LM):
    """A diffusion language model as lm-eval wants one: it generates, it does not rank.

    Bounds on a diffusion model's likelihood are not the autoregressive likelihoods that lm-eval's multiple-choice
    tasks compare, so those tasks are refused.
    """

    def __init__(self, tokenizer: Any, answer: Callable[[Sequence[Instance]], list[str]] | None = None):
        """Wraps a tokenizer and a way of answering.

        Args:
          tokenizer: a HuggingFace tokenizer with a chat template.
          answer: lm-eval's requests → the texts to score, in the same order; None builds prompts only.
        """
        super().__init__()
        self._tokenizer = tokenizer
        self._answer = answer

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's cache of prompts."""
        return str(getattr(self._tokenizer, "name_or_path", "") or type(self._tokenizer).__name__).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template itself, which lm-eval records."""
        return self._tokenizer.chat_template if chat_template else ""

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; `add_generation_prompt=False` continues its last message.

        Raises:
          ValueError: there is no chat template, or it refuses the conversation.
        """
        return render_chat(self._tokenizer, chat_history, add_generation_prompt=add_generation_prompt)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One text a request, cut at the request's stop strings."""
        if self._answer is None:
            raise ValueError("this adapter was made to build prompts; give it a way of answering")
        return self._answer(requests)

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Refused, with the reason."""
        raise NotImplementedError(
            "a diffusion language model has no token-by-token likelihood for lm-eval to rank choices with; use a "
            "generative task"
        )

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        """Refused, with the reason."""
        self.loglikelihood(requests)


def score(task: Any, instance: Instance, text: str) -> dict[str, float]:
    """What lm-eval gives one answer: its filters and metrics on this document alone, as `metric,filter` → value."""
    probe = Instance(
        request_type=instance.request_type,
        doc=instance.doc,
        arguments=instance.arguments,
        idx=instance.idx,
        metadata=instance.metadata,
        resps=[text],
    )
    for ensemble in task._filters:
        ensemble.apply([probe])
    return {
        f"{metric},{name}": float(value)
        for name, filtered in probe.filtered_resps.items()
        for metric, value in task.process_results(probe.doc, [filtered]).items()
    }


def build_requests(
    task: Any, tokenizer: Any, system_prompt: str | None, limit: int | None, chat: bool = True
) -> list[Instance]:
    """The requests that an evaluation will make, prompts rendered.

    Args:
      task: an lm-eval task.
      tokenizer: as for `HarnessModel`.
      system_prompt: the system message, or None.
      limit: the first so many problems; None for all.
      chat: render with the model's chat template.
    """
    adapter = HarnessModel(tokenizer)
    task.build_all_requests(
        limit=limit,
        system_instruction=system_prompt,
        apply_chat_template=chat,
        fewshot_as_multiturn=True,
        chat_template=adapter.apply_chat_template if chat else None,
        tokenizer_name=adapter.tokenizer_name if chat else "",
    )
    return list(task.instances)
