"""Requests through a fixed number of rows: a row that finishes gives its place to a waiting request, so that no device
idles behind one long answer."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from codd_jax.circuits import HMM
from codd_jax.decoding.cache import cache_span
from codd_jax.decoding.canvas import Canvas, lay_out, unbegun
from codd_jax.decoding.loop import begin_block, check_fit, raise_if_bad, run_block, stray_room
from codd_jax.decoding.regions import rows_at_work
from codd_jax.decoding.strategy import Numbers, Strategy
from codd_jax.distributed import fetch
from codd_jax.sharding import constrain_rows


class Requests(NamedTuple):
    """Rows to decode; N of each.

    Attributes:
      prompts: token ids, mask ids among them are positions to fill, too.
      gen_lengths: masks to append. begins: where decoding begins in each row.
      keys: [N] typed PRNG keys, from `canvas.row_keys`.
    """

    prompts: Sequence[Sequence[int]]
    gen_lengths: Sequence[int]
    begins: Sequence[int]
    keys: jax.Array

    def length(self, index: int) -> int:
        """Prompt and generation together."""
        return len(self.prompts[index]) + self.gen_lengths[index]


class Finished(NamedTuple):
    """A decoded row: its place among the requests, the whole row [length] int32, where decoding began, what it took."""

    index: int
    tokens: np.ndarray
    begin: int
    steps_used: int
    pc_failures: int


class Boundary(NamedTuple):
    """What happened up to a block boundary.

    Attributes:
      finished: rows that finished there.
      device_steps: steps that ran, times the rows of the canvas. used_steps: those of them that a row had a mask for.
      waiting: requests that have not been given a row yet.
    """

    finished: list[Finished]
    device_steps: int
    used_steps: int = 0
    waiting: int = 0


def decode_requests(
    denoiser: Any,
    params: Any,
    requests: Requests,
    strategy: Strategy,
    numbers: Numbers,
    *,
    rows: int,
    pad_id: int,
    bucket: int = 1,
    hmm: HMM | None = None,
    mesh: jax.sharding.Mesh | None = None,
    heard: Callable[[np.ndarray], bool] | None = None,
    refill: bool = True,
) -> Iterator[Boundary]:
    """Decodes every request, `rows` at a time, the longest first; yields at every block boundary.

    What a row becomes depends neither on `rows`, on the order and the company of the requests, on the mesh nor on
    `refill`. Every row keeps its own count of blocks. A boundary is where one row's block is over (where keys and
    values are kept: where all are, since rows share the moments of a refresh).

    Args:
      denoiser, params, strategy, numbers, hmm, mesh: as in `loop.decode`; the mesh's data axis divides `rows`.
      requests: what to decode.
      rows: of the canvas, in every program of the run.
      pad_id: fills rows up to the canvas, whose width is a multiple of `bucket` and shrinks with the longest row in it.
      heard: the ids generated so far, up to the first mask, of a row whose block is over → whether that is enough.
      refill: False lets rows wait for the slowest of their batch. A quota over the batch wants that by itself.

    Raises:
      FloatingPointError, ValueError: as in `loop.decode`.
    """
    refill = refill and strategy.quota == "row"
    blocks = [-(-(requests.length(n) - requests.begins[n]) // strategy.block_length) for n in range(len(requests[0]))]
    check_fit(denoiser, strategy, numbers, hmm, max(blocks, default=1))
    if strategy.coupling == "none":
        hmm = None
    table = _Table(requests, [max(count, 1) for count in blocks], strategy, rows, pad_id, bucket, mesh, refill)
    longest = max((requests.length(n) - requests.begins[n] for n in range(len(blocks))), default=1)
    while table.seat_waiting():
        canvas, survey = begin_block(table.canvas, strategy, numbers, table.block)
        survey = fetch(survey)
        if survey.working:
            room = stray_room(int(survey.strays), canvas.tokens.shape[-1])
            cached = strategy.cache != "none"
            span = cache_span(canvas, strategy, longest, int(survey.suffix)) if cached else 0
            canvas = run_block(
                denoiser, params, canvas, strategy, numbers, hmm, strays=room, span=span, together=cached or not refill
            )
        table.canvas = canvas
        yield table.end_rows(heard)


class _Table:
    """Who sits in which row of the canvas; the host's side of it.

    Attributes:
      canvas: None until the first row is taken. block: [rows] int32, the block that each row is in.
    """

    def __init__(self, requests, blocks, strategy, rows, pad_id, bucket, mesh, refill):
        self.canvas: Canvas | None = None
        self.block = np.zeros(rows, np.int32)
        self._requests, self._blocks, self._strategy = requests, blocks, strategy
        self._pad_id, self._bucket, self._mesh = pad_id, bucket, mesh
        self._refill = refill
        order = sorted(range(len(blocks)), key=lambda n: (-requests.length(n), n))
        self._waiting = deque(order)
        self._sitting = np.full(rows, -1, np.int64)
        self._ended = np.zeros(rows, bool)
        self._steps = np.zeros(rows, np.int64)
        self._used = np.zeros(rows, np.int64)
        self._key_data = np.asarray(jax.random.key_data(requests.keys))
        self._key_impl = jax.random.key_impl(requests.keys)

    def seat_waiting(self) -> bool:
        """Fills empty rows and fits the canvas to the longest; False when nobody waits and nobody sits."""
        taken = np.zeros(len(self._sitting), bool)
        if self._refill or (self._sitting < 0).all():
            for row in np.flatnonzero(self._sitting < 0)[: len(self._waiting)]:
                self._sitting[row] = self._waiting.popleft()
                taken[row] = True
        sitting = [int(n) for n in self._sitting if n >= 0]
        if not sitting:
            return False
        longest = max(self._requests.length(n) for n in sitting)
        width = -(-longest // self._bucket) * self._bucket
        if self.canvas is None:
            shape = {"rows": len(self._sitting), "width": width}
            self.canvas = _empty(**shape, pad_id=self._pad_id, key_impl=self._key_impl, mesh=self._mesh)
        elif width < self.canvas.tokens.shape[-1]:
            self.canvas = _narrow(self.canvas, width, self._mesh)
        if taken.any() or self._ended.any():
            self.canvas = _seat(self.canvas, self._ended, taken, *self._lay_out(taken), mesh=self._mesh)
            self.block[taken] = 0
            self._steps[taken] = self._used[taken] = 0
            self._ended[:] = False
        return True

    def _lay_out(self, taken: np.ndarray) -> tuple[np.ndarray, ...]:
        """Tokens, given, begins, lengths and key data of the new rows, all [rows, ...]."""
        who = {int(row): int(self._sitting[row]) for row in np.flatnonzero(taken)}
        requests, width = self._requests, self.canvas.tokens.shape[-1]
        prompts = [requests.prompts[who[row]] if row in who else () for row in range(len(taken))]
        lengths = np.asarray([requests.length(who[row]) if row in who else 1 for row in range(len(taken))], np.int32)
        begins = np.asarray([requests.begins[who[row]] if row in who else 1 for row in range(len(taken))], np.int32)
        tokens, given = lay_out(prompts, lengths, width, self._strategy.mask_id, self._pad_id)
        keys = self._key_data[[who.get(row, 0) for row in range(len(taken))]]
        return tokens, given, begins, lengths, keys

    def end_rows(self, heard: Callable[[np.ndarray], bool] | None) -> Boundary:
        """Advances the rows whose block is over, and takes away those that are finished."""
        state = fetch(_state(self.canvas, self._strategy))
        raise_if_bad(state.bad_step, self._sitting)
        live = self._sitting >= 0
        over = live & ~state.at_work
        ran = int(state.step[0] - self._steps[0]) * len(over)
        used = int((state.steps_used - self._used)[live].sum())
        self._used = state.steps_used.astype(np.int64)
        last = np.array(
            [self.block[row] + 1 >= self._blocks[n] if n >= 0 else False for row, n in enumerate(self._sitting)]
        )
        leaving = over & (state.done | last)
        tokens = fetch(self.canvas.tokens) if leaving.any() or (heard is not None and over.any()) else None
        if heard is not None:
            for row in np.flatnonzero(over & ~leaving):
                leaving[row] = heard(self._generated(tokens[row], row))
        self.block[over & ~leaving] += 1
        self._steps = np.where(over & ~leaving, 0, state.step)
        finished = []
        for row in np.flatnonzero(leaving):
            n = int(self._sitting[row])
            whole = tokens[row, : self._requests.length(n)].copy()
            spent, failures = int(state.steps_used[row]), int(state.pc_failures[row])
            finished.append(Finished(n, whole, self._requests.begins[n], spent, failures))
        self._sitting[leaving] = -1
        self._ended |= leaving
        return Boundary(finished, ran, used, len(self._waiting))

    def _generated(self, tokens: np.ndarray, row: int) -> np.ndarray:
        """What a row has generated up to its first mask."""
        n = int(self._sitting[row])
        ids = tokens[self._requests.begins[n] : self._requests.length(n)]
        masks = np.flatnonzero(ids == self._strategy.mask_id)
        return ids[: masks[0]] if masks.size else ids


class _State(NamedTuple):
    """What the host must know of the rows at a boundary, all [B]."""

    at_work: jax.Array
    done: jax.Array
    bad_step: jax.Array
    step: jax.Array
    steps_used: jax.Array
    pc_failures: jax.Array


@functools.partial(jax.jit, static_argnames="strategy")
def _state(canvas: Canvas, strategy: Strategy) -> _State:
    at_work = rows_at_work(canvas, strategy)
    return _State(at_work, canvas.done, canvas.bad_step, canvas.block.step, canvas.steps_used, canvas.pc_failures)


@functools.partial(jax.jit, static_argnames=("rows", "width", "pad_id", "key_impl", "mesh"))
def _empty(*, rows: int, width: int, pad_id: int, key_impl: Any, mesh: jax.sharding.Mesh | None) -> Canvas:
    """A canvas of rows that are done."""
    zeros, ones = jnp.zeros(rows, jnp.int32), jnp.ones(rows, jnp.int32)
    canvas = Canvas(
        tokens=jnp.full((rows, width), pad_id, jnp.int32),
        given=jnp.zeros((rows, width), bool),
        prompt_lengths=ones,
        lengths=ones,
        keys=jax.random.split(jax.random.key(0, impl=key_impl), rows),
        done=jnp.ones(rows, bool),
        steps_used=zeros,
        pc_failures=zeros,
        bad_step=zeros - 1,
        block=unbegun(rows),
    )
    return constrain_rows(canvas, mesh)


@functools.partial(jax.jit, static_argnames=("width", "mesh"))
def _narrow(canvas: Canvas, width: int, mesh: jax.sharding.Mesh | None) -> Canvas:
    """The canvas without its last columns, which are padding in every row that counts."""
    narrow = canvas.replace(tokens=canvas.tokens[:, :width], given=canvas.given[:, :width])
    # Rows that are over may have been longer.
    narrow = narrow.replace(
        lengths=jnp.minimum(narrow.lengths, width), prompt_lengths=jnp.minimum(narrow.prompt_lengths, width)
    )
    return constrain_rows(narrow, mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _seat(canvas: Canvas, ended, taken, tokens, given, begins, lengths, key_data, *, mesh=None) -> Canvas:
    """The canvas with `ended` [B] rows done, and those `taken` [B] begun anew from [B, ...] arrays."""
    keys = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(canvas.keys))
    zeros = jnp.zeros_like(canvas.lengths)
    new = Canvas(
        tokens=tokens,
        given=given,
        prompt_lengths=begins,
        lengths=lengths,
        keys=keys,
        done=jnp.zeros_like(canvas.done),
        steps_used=zeros,
        pc_failures=zeros,
        bad_step=zeros - 1,
        block=unbegun(len(taken)),
    )
    old = canvas.replace(done=canvas.done | ended)
    return constrain_rows(jax.tree.map(functools.partial(_choose, taken), new, old), mesh)


def _choose(taken: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return lax.select(jnp.broadcast_to(taken.reshape(-1, *(1,) * (old.ndim - 1)), old.shape), jnp.asarray(new), old)
