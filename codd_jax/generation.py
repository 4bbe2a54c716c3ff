"""Many prompts through the decoder: sorted into batches of equal shape, streamed block by block, returned in order."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from tqdm import tqdm

from codd_jax.decoding.canvas import Canvas, generations, make_canvas
from codd_jax.decoding.config import DecodeConfig
from codd_jax.decoding.loop import decode_blocks

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

    def run(self, batch_size: int, progress: bool = False, pad_batch: bool = False) -> Generation:
        """Decodes all rows, `batch_size` at a time, longest first; no result depends on the batch size.

        With `pad_batch`, fewer rows than `batch_size` are filled up to it: calls of few and of many rows then share
        their programs. ValueError for a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        done: dict[int, Generation] = {}
        order = sorted(range(len(self.rows)), key=lambda row: (-len(self.rows[row]), row))
        with tqdm(total=len(order), desc="generating", unit="row", disable=not progress) as bar:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                canvas = self._canvas(batch, batch_size if pad_batch else min(batch_size, len(order)))
                for number, after in enumerate(self._blocks(canvas), 1):
                    canvas = after
                    bar.set_postfix_str(f"block {number}")
                finished = self._collect(canvas, len(batch))
                done |= {row: _row(finished, position) for position, row in enumerate(batch)}
                bar.update(len(batch))
        result = _join([done[row] for row in range(len(self.rows))])
        if failures := int(result.pc_failures.sum()):
            warnings.warn(
                f"in {failures} of {int(result.steps_used.sum())} steps the circuit found what was already known "
                "impossible; the backbone decoded them alone",
                stacklevel=3,
            )
        return result

    def stream(self) -> Iterator[Generation]:
        """Decodes all rows as one batch; yields what there is after every block, without what is still masked."""
        batch = list(range(len(self.rows)))
        for canvas in self._blocks(self._canvas(batch, len(batch))):
            yield self._collect(canvas, len(batch))

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

    def _canvas(self, batch: list[int], rows: int) -> Canvas:
        """One batch, filled up with empty rows to a shape that all batches of the run share."""
        if self.model.mesh is not None:
            share = self.model.mesh.shape["data"]
            rows = -(-rows // share) * share
        begins = self.prompt_lengths
        return make_canvas(
            [self.rows[row] for row in batch],
            self.gen_length,
            self.model.config.mask_id,
            self.model.config.pad_id,
            bucket=LENGTH_BUCKET,
            rows=rows,
            keys=self.keys[np.asarray(batch)],
            prompt_lengths=None if begins is None else [begins[row] for row in batch],
        )

    def _stops(self) -> tuple[int, ...]:
        if not self.config.stop_at_eos:
            return ()
        return self.model.stop_ids if self.config.stop_ids is None else tuple(self.config.stop_ids)

    def _finished(self, canvas: Canvas) -> np.ndarray:
        """[B] bool: rows in which a stop string has appeared before the first mask."""
        sofar = generations(canvas, (*self._stops(), self.model.config.mask_id))
        return np.array([self._cut(self._text(ids)) is not None for ids in sofar])

    def _collect(self, canvas: Canvas, count: int) -> Generation:
        tokens = generations(canvas, self._stops(), count)
        if self.prompt_lengths is None:  # what is still masked was not generated; a text with holes keeps its places
            tokens = [ids[ids != self.model.config.mask_id] for ids in tokens]
        text = None
        if self.model.tokenizer is not None:
            whole = [self._text(ids[ids != self.model.config.mask_id]) for ids in tokens]
            text = [part if (cut := self._cut(part)) is None else cut for part in whole]
        steps, failures = (np.asarray(x)[:count] for x in (canvas.steps_used, canvas.pc_failures))
        return Generation(tokens, text, steps, failures)

    def _text(self, ids: np.ndarray) -> str:
        return self.model.tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    def _cut(self, text: str) -> str | None:
        """The text before the first stop string, None if there is none."""
        ends = [text.find(stop) for stop in self.stop_strings if stop and stop in text]
        return text[: min(ends)] if ends else None


def _row(generation: Generation, row: int) -> Generation:
    keep = slice(row, row + 1)
    text = None if generation.text is None else generation.text[keep]
    return Generation(generation.tokens[keep], text, generation.steps_used[keep], generation.pc_failures[keep])


def _join(rows: Sequence[Generation]) -> Generation:
    text = None if rows[0].text is None else [part for row in rows for part in row.text]
    return Generation(
        [ids for row in rows for ids in row.tokens],
        text,
        np.concatenate([row.steps_used for row in rows]),
        np.concatenate([row.pc_failures for row in rows]),
    )
