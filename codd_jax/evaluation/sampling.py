"""From requests to recorded answers: all through the model at once, each on disk as it finishes."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from codd_jax.evaluation.batching import group_by, occurrences
from codd_jax.evaluation.results import Mirror, ResultsFolder
from codd_jax.tokenizer import encode_text


class TextModel(Protocol):
    """What an evaluation needs of a model; `codd_jax.CoDD` is one."""

    tokenizer: Any

    def generate(self, prompts: Sequence[Sequence[int]], config: Any, **options: Any) -> Any:
        """Rows of ids, told to `on_finished` as they finish: {row: an object with `tokens`, `text`, `steps_used` and
        `pc_failures`, each of one entry}."""


@dataclasses.dataclass(frozen=True)
class DeferredModel:
    """A model whose weights are loaded when there is something to ask it, and the questions have been looked at.

    Attributes:
      tokenizer: of the model.
      load: the prompts' numbers of tokens → the model; raises if they do not fit.
    """

    tokenizer: Any
    load: Callable[[Sequence[int]], TextModel]


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt to answer.

    Attributes:
      doc_id: the problem's place in its file.
      repeat: 0 for a problem's first answer.
      prompt: the rendered prompt.
      until: strings that end an answer; neither they nor what follows is scored.
      doc: the problem as the task holds it.
      target: the task's reference answer.
    """

    doc_id: int
    repeat: int
    prompt: str
    until: tuple[str, ...]
    doc: Mapping[str, Any]
    target: Any


def clip(text: str, until: Iterable[str]) -> str:
    """The text before the first of the stop strings; empty strings stop nothing."""
    ends = [text.find(stop) for stop in until if stop and stop in text]
    return text[: min(ends)] if ends else text


def answer_seed(seed: int, occurrence: int) -> int:
    """The seed of a prompt's n-th asking: the run's own for the first, unrelated ones (31 bits) for repetitions.

    A row's randomness depends on seed and prompt alone, so equal prompts would get equal answers; counting them over
    the whole run, not over a batch, keeps answers the same however the run is cut up and continued.
    """
    if not occurrence:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{occurrence}".encode()).digest()[:4], "little") & 0x7FFFFFFF


@dataclasses.dataclass
class Sampler:
    """Answers requests with a model, records each as it finishes, and skips those that a results folder holds.

    Attributes:
      model: generates; one that is deferred is loaded only if the folder does not hold every answer.
      decode: the model's decoding configuration.
      folder: holds finished samples and takes new ones.
      score: request, text → `metric,filter` → value.
      headline: the metric of the progress bar.
      seed: of the run.
      batch_size: rows that go through the model together.
      progress: show a bar with running accuracy and tokens/s.
    """

    model: TextModel | DeferredModel
    decode: Any
    folder: ResultsFolder | Mirror
    score: Callable[[Request, str], Mapping[str, float]]
    headline: str
    seed: int = 0
    batch_size: int = 8
    progress: bool = True

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """One text a request, in order; what was not in the results folder is there afterwards.

        Raises:
          ValueError: a sample in the folder answers another prompt than its document has now.
        """
        prompts = [tuple(encode_text(self.model.tokenizer, request.prompt)) for request in requests]
        repeats = occurrences(prompts)
        open_requests = [index for index, request in enumerate(requests) if not self._is_done(request)]
        model = self.model
        if open_requests and isinstance(model, DeferredModel):
            model = model.load([len(prompts[index]) for index in open_requests])
        with self._bar(requests, len(requests) - len(open_requests)) as bar:
            # One set of stop strings a call.
            for group in group_by([requests[index].until for index in open_requests]):
                rows = [open_requests[place] for place in group]
                recorder = _Recorder(self, requests, prompts, rows, bar)
                model.generate(
                    [list(prompts[row]) for row in rows],
                    self.decode,
                    seed=[answer_seed(self.seed, repeats[row]) for row in rows],
                    batch_size=self.batch_size,
                    stop_strings=requests[rows[0]].until,
                    pad_batch=True,  # few rows are left when a run is continued, and would be compiled anew
                    on_finished=recorder.record,
                )
        return [self.folder.samples[request.doc_id, request.repeat]["text"] for request in requests]

    def _is_done(self, request: Request) -> bool:
        record = self.folder.samples.get((request.doc_id, request.repeat))
        if record is None:
            return False
        if record["prompt_digest"] != _digest(request.prompt):
            raise ValueError(
                f"{self.folder.path} holds an answer to another prompt for document {request.doc_id}: the problems or "
                "the chat template have changed; choose another --output_dir or --tag"
            )
        return True

    def _bar(self, requests: Sequence[Request], done: int) -> tqdm:
        bar = tqdm(total=len(requests), initial=done, unit="problem", disable=not self.progress)
        if done:
            bar.set_postfix_str(self.state(requests))
        return bar

    def state(self, requests: Sequence[Request]) -> str:
        """Accuracy so far and tokens a second, over the finished samples of these requests."""
        keys = [(request.doc_id, request.repeat) for request in requests]
        records = [self.folder.samples[key] for key in keys if key in self.folder.samples]
        seconds = sum(record["seconds"] for record in records)
        rate = sum(record["num_tokens"] for record in records) / seconds if seconds else 0.0
        accuracy = sum(record["correct"] for record in records) / len(records)
        return f"accuracy {accuracy:.1%}, {rate:.1f} tokens/s"


class _Recorder:
    """Scores and records the rows of one call as they finish."""

    def __init__(self, sampler: Sampler, requests, prompts, rows: Sequence[int], bar: tqdm):
        self._sampler, self._requests, self._prompts, self._rows, self._bar = sampler, requests, prompts, rows, bar
        self._clock = time.perf_counter()

    def record(self, finished: Mapping[int, Any]) -> None:
        """Takes rows of the call with their generations; the time since the last ones is shared among them."""
        seconds = (time.perf_counter() - self._clock) / len(finished)
        records = [self._record(self._rows[place], out, seconds) for place, out in sorted(finished.items())]
        self._sampler.folder.append(records)
        self._bar.update(len(records))
        self._bar.set_postfix_str(self._sampler.state(self._requests))
        self._clock = time.perf_counter()

    def _record(self, row: int, out: Any, seconds: float) -> dict[str, Any]:
        request, sampler = self._requests[row], self._sampler
        # A tokenizer may decode special tokens; none of them is part of an answer.
        text = clip(out.text[0], (*request.until, getattr(sampler.model.tokenizer, "eos_token", None) or ""))
        scores = dict(sampler.score(request, text))
        tokens = np.asarray(out.tokens[0]).tolist()
        return {
            "doc_id": request.doc_id,
            "repeat": request.repeat,
            "correct": scores[sampler.headline] > 0,
            "scores": scores,
            "text": text,
            "target": request.target,
            "doc": dict(request.doc),
            "tokens": tokens,
            "num_tokens": len(tokens),
            "prompt_tokens": len(self._prompts[row]),
            "steps_used": int(np.asarray(out.steps_used)[0]),
            "pc_failures": int(np.asarray(out.pc_failures)[0]),
            "seconds": round(seconds, 6),
            "prompt": request.prompt,
            "prompt_digest": _digest(request.prompt),
        }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
