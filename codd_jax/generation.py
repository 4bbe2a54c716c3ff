"""Many prompts through the decoder: longest first, rows refilled as they finish, returned in order; or streamed."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from tqdm import tqdm

from codd_jax.decoding.canvas import Canvas, cut_before, generations, make_canvas
from codd_jax.decoding.config import DecodeConfig
from codd_jax.decoding.loop import decode_blocks
from codd_jax.decoding.refill import Boundary, Finished, Requests, decode_requests
from codd_jax.distributed import fetch

if TYPE_CHECKING:
    from codd_jax.model import CoDD

# Canvas lengths are rounded up to a multiple of this, so that a run over many prompts compiles a handful of programs.
LENGTH_BUCKET = 64


@dataclasses.dataclass(frozen=True)
class Generation:
    """What came out, one entry per row: prompts in the order given, the samples of a prompt side by side.

    Attributes:
      tokens: int32 arrays, the generated tokens up to the first stop id (all of them with stop_at_eos=False), without
        what is still masked.
      text: those tokens as text, cut before the first stop string; None for a model without a tokenizer.
      steps_used: [rows] denoising steps that the row took part in, which are its forward passes.
      pc_failures: [rows] steps in which the circuit found the row's evidence impossible and was left out.
    """

    tokens: list[np.ndarray]
    text: list[str] | None
    steps_used: np.ndarray
    pc_failures: np.ndarray

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens per forward pass, over all rows."""
        return sum(map(len, self.tokens)) / max(int(self.steps_used.sum()), 1)


def filling_config(config: DecodeConfig, rows: Sequence[Sequence[int]], mask_id: int, coupled: bool) -> DecodeConfig:
    """The configuration for filling the holes of `rows`: the whole text is one canvas, and each hole takes a step at
    most."""
    return dataclasses.replace(
        config,
        steps=min(config.steps, max(row.count(mask_id) for row in rows)),
        gen_length=max(map(len, rows)),
        block_length=None,
        cache="none",
        cache_refresh=None,
        windows=(config.windows or "cover") if coupled and config.coupling != "none" else None,
        stop_at_eos=False,
    )


@dataclasses.dataclass(frozen=True)
class Job:
    """Rows to decode with one model and one configuration.

    Attributes:
      model: what decodes.
      config: how to decode.
      rows: token ids of every row, masks included. keys: [rows] PRNG keys.
      gen_length: masks appended to each row.
      prompt_lengths: where decoding begins in each row; None: after the prompt.
      stop_strings: a row is finished by the block in which one of these appears.
    """

    model: CoDD
    config: DecodeConfig
    rows: Sequence[Sequence[int]]
    keys: jax.Array
    gen_length: int
    prompt_lengths: Sequence[int] | None = None
    stop_strings: tuple[str, ...] = ()

    def run(
        self,
        batch_size: int,
        progress: bool = False,
        pad_batch: bool = False,
        refill: bool = True,
        on_finished: Callable[[Mapping[int, Generation]], None] | None = None,
    ) -> Generation:
        """Decodes all rows, `batch_size` at a time, longest first; no result depends on the batch size.

        Args:
          batch_size: rows of the canvas. pad_batch: fill fewer rows up to it, so that calls of few and of many rows
            share their programs.
          progress: show a bar.
          refill: a row that finishes gives its place to the next one at once; else the whole batch finishes first.
          on_finished: called with rows as they finish: row → its `Generation`.

        Raises:
          ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        done: dict[int, Generation] = {}
        with tqdm(total=len(self.rows), desc="generating", unit="row", disable=not progress) as bar:
            for boundary in self.boundaries(batch_size if pad_batch else min(batch_size, len(self.rows)), refill):
                finished = {row.index: self._result(row) for row in boundary.finished}
                done |= finished
                bar.update(len(finished))
                if finished and on_finished is not None:
                    on_finished(finished)
        result = _join([done[row] for row in range(len(self.rows))])
        if failures := int(result.pc_failures.sum()):
            warnings.warn(
                f"in {failures} of {int(result.steps_used.sum())} steps the circuit found what was already known "
                "impossible; the backbone decoded them alone",
                stacklevel=3,
            )
        return result

    def boundaries(self, rows: int, refill: bool = True) -> Iterator[Boundary]:
        """The boundaries of `decoding.refill.decode_requests` over all rows, on a canvas of at least `rows`."""
        model = self.model
        strategy, numbers = model.split(self.config)
        requests = Requests(
            self.rows,
            [self.gen_length] * len(self.rows),
            [len(row) for row in self.rows] if self.prompt_lengths is None else self.prompt_lengths,
            self.keys,
        )
        return decode_requests(
            model.denoiser,
            model.params,
            requests,
            strategy,
            numbers,
            rows=self._shared(rows),
            pad_id=model.config.pad_id,
            bucket=LENGTH_BUCKET,
            hmm=model.hmm,
            mesh=model.mesh,
            heard=self._heard if self.stop_strings else None,
            refill=refill,
        )

    def stream(self) -> Iterator[Generation]:
        """Decodes all rows as one batch; yields what there is after every block, without what is still masked."""
        for canvas in self._blocks(self._canvas()):
            yield self._collect(canvas)

    def _blocks(self, canvas: Canvas) -> Iterator[Canvas]:
        model = self.model
        strategy, numbers = model.split(self.config)
        return decode_blocks(
            model.denoiser,
            model.params,
            canvas,
            strategy,
            numbers,
            hmm=model.hmm,
            mesh=model.mesh,
            finished=self._finished if self.stop_strings else None,
        )

    def _shared(self, rows: int) -> int:
        """Rows that the mesh's data axis divides; those too many stay empty."""
        share = 1 if self.model.mesh is None else self.model.mesh.shape["data"]
        return -(-rows // share) * share

    def _canvas(self) -> Canvas:
        """All rows as one batch."""
        return make_canvas(
            self.rows,
            self.gen_length,
            self.model.config.mask_id,
            self.model.config.pad_id,
            bucket=LENGTH_BUCKET,
            rows=self._shared(len(self.rows)),
            keys=self.keys,
            prompt_lengths=self.prompt_lengths,
        )

    def _stops(self) -> tuple[int, ...]:
        if not self.config.stop_at_eos:
            return ()
        return self.model.stop_ids if self.config.stop_ids is None else tuple(self.config.stop_ids)

    def _finished(self, canvas: Canvas) -> np.ndarray:
        """[B] bool: rows in which a stop string has appeared before the first mask."""
        return np.array([self._heard(ids) for ids in generations(canvas, (self.model.config.mask_id,))])

    def _heard(self, ids: np.ndarray) -> bool:
        """Whether a stop string has appeared in what was generated up to the first mask."""
        return self._cut(self._text(cut_before(ids, self._stops()))) is not None

    def _collect(self, canvas: Canvas) -> Generation:
        """What stands in the rows of a canvas."""
        steps, failures = fetch((canvas.steps_used, canvas.pc_failures))
        ids = generations(canvas, (), len(self.rows))
        return _join([self._generation(*row) for row in zip(ids, steps, failures, strict=False)])

    def _result(self, row: Finished) -> Generation:
        return self._generation(row.tokens[row.begin :], row.steps_used, row.pc_failures)

    def _generation(self, ids: np.ndarray, steps: int, failures: int) -> Generation:
        """One row's answer from what was decoded of it."""
        ids = cut_before(ids, self._stops())
        unmasked = ids[ids != self.model.config.mask_id]
        text = None
        if self.model.tokenizer is not None:
            whole = self._text(unmasked)
            text = [whole if (cut := self._cut(whole)) is None else cut]
        # What is still masked was not generated; a text with holes keeps its places.
        tokens = unmasked if self.prompt_lengths is None else ids
        return Generation([tokens], text, np.array([steps], np.int32), np.array([failures], np.int32))

    def _text(self, ids: np.ndarray) -> str:
        return self.model.tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    def _cut(self, text: str) -> str | None:
        """The text before the first stop string, None if there is none."""
        ends = [text.find(stop) for stop in self.stop_strings if stop and stop in text]
        return text[: min(ends)] if ends else None


def _join(rows: Sequence[Generation]) -> Generation:
    text = None if rows[0].text is None else [part for row in rows for part in row.text]
    return Generation(
        [ids for row in rows for ids in row.tokens],
        text,
        np.concatenate([row.steps_used for row in rows]),
        np.concatenate([row.pc_failures for row in rows]),
    )
