"""A generation step by step: which tokens each step fixed, how sure the backbone was, where the circuit's windows lay.

The decoder itself runs whole blocks on the device; here its single step is called from the host, so that the loop that
benchmarks use carries nothing for the sake of watching it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from codd_jax.decoding.cache import Memory, cache_span, refresh
from codd_jax.decoding.canvas import Canvas, cut_before, make_canvas, row_keys
from codd_jax.decoding.config import DecodeConfig
from codd_jax.decoding.loop import begin_block, check_fit, num_blocks, raise_if_bad, stop_rows, stray_room
from codd_jax.decoding.regions import rows_at_work
from codd_jax.decoding.steps import denoise_step
from codd_jax.distributed import fetch
from codd_jax.evaluation.step_facts import probabilities_of, windows_of
from codd_jax.generation import LENGTH_BUCKET
from codd_jax.model import CoDD
from codd_jax.sharding import batch_sharding


@dataclasses.dataclass(frozen=True)
class Window:
    """A window of the circuit in one step.

    Attributes:
      start, end: positions, the first generated token being 0; a window may reach into the prompt.
      used: whether the circuit drew here; where not, too much of the window was masked, or nothing in it was possible.
    """

    start: int
    end: int
    used: bool


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step fixed. Positions count from the first generated token.

    Attributes:
      block: first position of the block and the one after its last.
      positions, tokens: where, and which ids.
      probabilities: the backbone's own, of each of these tokens, before the step.
      windows: of the circuit; none for the backbone alone.
    """

    block: tuple[int, int]
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    probabilities: tuple[float, ...]
    windows: tuple[Window, ...]


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A whole generation.

    Attributes:
      title: what decoded. decoding: fields of the configuration. seed: of its draws.
      length: positions that there were to fill.
      steps: in order; their number is that of the backbone's calls.
      answer: the ids that count as generated, cut before the first stop id. text: the same as text.
      pieces: the text of every token that was fixed, by id.
    """

    title: str
    decoding: dict[str, Any]
    seed: int
    length: int
    steps: tuple[Step, ...]
    answer: tuple[int, ...]
    text: str
    pieces: dict[int, str]


class Recorder:
    """Decodes one prompt step by step; iterate over it, then ask for the `trajectory`.

    The tokens are those of `model.generate` with the same configuration and seed.

    Attributes:
      decode: the configuration.
    """

    def __init__(
        self,
        model: CoDD,
        prompt: Sequence[int],
        decode: DecodeConfig,
        *,
        seed: int = 0,
        stop_strings: Sequence[str] = (),
    ):
        """Lays out the canvas.

        Args:
          model: with a tokenizer. prompt: ids. decode: how to decode. seed: of every draw.
          stop_strings: decoding ends with the block in which one of these appears.

        Raises:
          ValueError: a circuit that does not fit.
        """
        self.decode = decode
        self._model, self._seed, self._stops = model, seed, tuple(stop_strings)
        self._strategy, self._numbers = model.split(decode)
        self._begin = len(prompt)
        self._hmm = model.hmm if self._strategy.coupling != "none" else None
        canvas = make_canvas(
            [list(prompt)],
            decode.gen_length,
            model.config.mask_id,
            model.config.pad_id,
            bucket=LENGTH_BUCKET,
            rows=1 if model.mesh is None else model.mesh.shape["data"],
            keys=row_keys([list(prompt)], seed),
        )
        self._canvas = canvas if model.mesh is None else jax.device_put(canvas, batch_sharding(model.mesh))
        check_fit(model.denoiser, self._strategy, self._numbers, self._hmm, num_blocks(canvas, self._strategy))
        self._steps: list[Step] = []

    def __iter__(self) -> Iterator[Step]:
        """The steps, each as it has been decoded.

        Raises:
          FloatingPointError: NaN or infinite logits.
        """
        model, strategy, numbers = self._model, self._strategy, self._numbers
        canvas = self._canvas
        for index in range(num_blocks(canvas, strategy)):
            canvas, survey = begin_block(canvas, strategy, numbers, np.int32(index))
            room = stray_room(int(fetch(survey.strays)), canvas.tokens.shape[-1])
            span = cache_span(canvas, strategy, self.decode.gen_length, int(fetch(survey.suffix)))
            memory, age = None, 0
            while bool(fetch(rows_at_work(canvas, strategy)).any()):
                before = canvas
                if strategy.cache != "none" and (memory is None or age >= numbers.cache_refresh):
                    memory, age = refresh(model.denoiser, model.params, canvas, strategy, room, span), 0
                canvas = denoise_step(
                    model.denoiser, model.params, canvas, strategy, numbers, self._hmm, memory, strays=room
                )
                age += 1
                raise_if_bad(fetch(canvas.bad_step))
                self._canvas = canvas
                self._steps.append(self._step(before, canvas, memory))
                yield self._steps[-1]
            canvas = stop_rows(canvas, strategy)
            self._canvas = canvas
            if bool(fetch(canvas.done).all()) or self._heard():
                return

    @property
    def planned_steps(self) -> int:
        """Steps that may be taken at most."""
        return self.decode.gen_length if self._strategy.schedule in ("threshold", "factor") else self.decode.steps

    @property
    def trajectory(self) -> Trajectory:
        """What has been decoded so far."""
        ids = self._answer()
        fixed = sorted({token for step in self._steps for token in step.tokens})
        return Trajectory(
            title=title(self.decode),
            decoding=json.loads(json.dumps(dataclasses.asdict(self.decode), default=str)),
            seed=self._seed,
            length=self.decode.gen_length,
            steps=tuple(self._steps),
            answer=tuple(ids),
            text=self._model.tokenizer.decode(ids, skip_special_tokens=True),
            pieces={token: self.piece(token) for token in fixed},
        )

    def piece(self, token: int) -> str:
        """One token as text; a part of a character, which is no text, under its own name."""
        text = self._model.tokenizer.decode([token])
        if text and "\ufffd" not in text:
            return text
        return str(self._model.tokenizer.convert_ids_to_tokens(token))

    def _answer(self) -> list[int]:
        """The generated ids before the first stop id, without masks."""
        ids = cut_before(self._generated(), self._stop_ids())
        return ids[ids != self._model.config.mask_id].tolist()

    def _stop_ids(self) -> tuple[int, ...]:
        if not self.decode.stop_at_eos:
            return ()
        return tuple(self._model.stop_ids if self.decode.stop_ids is None else self.decode.stop_ids)

    def _generated(self) -> np.ndarray:
        row = fetch(self._canvas.tokens)[0]
        return row[self._begin : self._begin + self.decode.gen_length]

    def _heard(self) -> bool:
        """Whether a stop string has appeared before the first mask."""
        sofar = cut_before(self._generated(), (self._model.config.mask_id,))
        ids = cut_before(sofar, self._stop_ids())
        text = self._model.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return any(stop and stop in text for stop in self._stops)

    def _step(self, before: Canvas, after: Canvas, memory: Memory | None) -> Step:
        """The record of a step from the canvas before it and after it, and what it had kept of the steps before."""
        model, strategy = self._model, self._strategy
        old, new = fetch((before.tokens, after.tokens))
        (where,) = np.nonzero(old[0] != new[0])
        probabilities: np.ndarray = np.zeros(0)
        if len(where):
            # A few sizes serve any number of tokens.
            room = 1 << int(len(where) - 1).bit_length()
            places = np.zeros((len(old), room), np.int32)
            places[0, : len(where)] = where
            read = probabilities_of(
                model.denoiser, model.params, before, memory, places, after.tokens, strategy, self._numbers
            )
            probabilities = fetch(read)[0, : len(where)]
        windows: tuple[Window, ...] = ()
        if self._hmm is not None:
            starts, used = fetch(windows_of(before, after, strategy, self._numbers))
            failed = bool((fetch(after.pc_failures) > fetch(before.pc_failures))[0])
            length = int(fetch(before.lengths)[0])
            windows = tuple(
                Window(int(start) - self._begin, min(int(start) + strategy.window_length, length) - self._begin, ok)
                for start, ok in zip(starts, (used & (not failed)).tolist(), strict=True)
                if start >= 0
            )
        start, end = (int(fetch(edge)[0]) - self._begin for edge in (before.block.start, before.block.end))
        return Step(
            block=(start, end),
            positions=tuple(int(place) - self._begin for place in where),
            tokens=tuple(new[0][where].tolist()),
            probabilities=tuple(round(float(value), 5) for value in probabilities),
            windows=windows,
        )


def record(
    model: CoDD, prompt: Sequence[int], decode: DecodeConfig, *, seed: int = 0, stop_strings: Sequence[str] = ()
) -> Trajectory:
    """Decodes a prompt to its end and returns how; arguments and errors as in `Recorder`."""
    recorder = Recorder(model, prompt, decode, seed=seed, stop_strings=stop_strings)
    for _ in recorder:
        pass
    return recorder.trajectory


def title(decode: DecodeConfig) -> str:
    """What decodes, in words."""
    return "Backbone alone" if decode.coupling == "none" else f"CoDD, {decode.coupling.replace('_', '-')} coupling"
