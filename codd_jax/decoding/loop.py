"""Blocks of steps: each runs on the device without a host round trip; the loop over them streams and stops early."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from codd_jax.circuits import HMM
from codd_jax.decoding.blocks import block_window_start
from codd_jax.decoding.cache import CachedDenoiser, Memory, cache_span, refresh
from codd_jax.decoding.canvas import Block, Canvas
from codd_jax.decoding.denoiser import check_hidden
from codd_jax.decoding.regions import competing, rows_at_work
from codd_jax.decoding.schedule import block_steps
from codd_jax.decoding.steps import take_step
from codd_jax.decoding.strategy import Numbers, Strategy
from codd_jax.distributed import fetch
from codd_jax.sharding import batch_sharding

# Rooms for masks left before a block, so that a few programs serve any number of them.
_STRAY_ROOMS = (0, 8, 64, 512)


def decode(
    denoiser: Any,
    params: Any,
    canvas: Canvas,
    strategy: Strategy,
    numbers: Numbers,
    *,
    hmm: HMM | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: bool = False,
    on_block: Callable[[Canvas], None] | None = None,
) -> Canvas:
    """Decodes every row to its end, or to the block that holds a stop id.

    Args:
      denoiser: see `denoiser.Denoiser`; params: its parameters.
      canvas: from `make_canvas`. strategy, numbers: from `DecodeConfig.split`.
      hmm: the circuit, None without one.
      mesh: shards the rows over its data axis.
      progress: shows a bar over the blocks.
      on_block: called with the canvas after every block.

    Raises:
      FloatingPointError: NaN or infinite logits, naming row and step.
      ValueError: a circuit whose length is not the strategy's window, fewer steps than blocks, or a denoiser that
        cannot keep what the strategy wants kept.
    """
    blocks = decode_blocks(denoiser, params, canvas, strategy, numbers, hmm=hmm, mesh=mesh)
    for after in tqdm(blocks, total=num_blocks(canvas, strategy), desc="decoding", disable=not progress):
        canvas = after
        if on_block is not None:
            on_block(canvas)
    failures = int(fetch(canvas.pc_failures).sum())
    if failures:
        warnings.warn(
            f"in {failures} steps the circuit found what was already known impossible; the backbone decoded them alone",
            stacklevel=2,
        )
    return canvas


def decode_blocks(
    denoiser: Any,
    params: Any,
    canvas: Canvas,
    strategy: Strategy,
    numbers: Numbers,
    *,
    hmm: HMM | None = None,
    mesh: jax.sharding.Mesh | None = None,
    finished: Callable[[Canvas], np.ndarray] | None = None,
) -> Iterator[Canvas]:
    """Yields the canvas after every block; arguments and errors as in `decode`.

    finished: asked after every block which rows [B] bool the caller has heard enough of; they are done.
    """
    check_fit(denoiser, strategy, numbers, hmm, num_blocks(canvas, strategy))
    if strategy.coupling == "none":
        hmm = None
    if mesh is not None:
        canvas = _shard_rows(canvas, mesh)
    longest = _longest(canvas)
    for index in range(num_blocks(canvas, strategy)):
        canvas, survey = begin_block(canvas, strategy, numbers, np.int32(index))
        survey = fetch(survey)
        if survey.all_done:
            return
        if survey.working:
            room = stray_room(int(survey.strays), canvas.tokens.shape[-1])
            span = cache_span(canvas, strategy, longest, int(survey.suffix)) if strategy.cache != "none" else 0
            canvas = run_block(denoiser, params, canvas, strategy, numbers, hmm, strays=room, span=span)
            raise_if_bad(fetch(canvas.bad_step))
            if finished is not None:
                canvas = canvas.replace(done=canvas.done | finished(canvas))
        yield canvas


class BlockSurvey(NamedTuple):
    """What the host must know to run a block.

    Attributes:
      all_done, working: [] bool, whether all rows are done, whether any is at work.
      strays: [] int32, most masks that a row has before its window (before its block where keys and values are kept).
      suffix: [] int32, most positions that a row has from the block's start on.
    """

    all_done: jax.Array
    working: jax.Array
    strays: jax.Array
    suffix: jax.Array


def num_blocks(canvas: Canvas, strategy: Strategy) -> int:
    """Blocks of the longest generation."""
    return max(-(-_longest(canvas) // strategy.block_length), 1)


def _longest(canvas: Canvas) -> int:
    return int((fetch(canvas.lengths) - fetch(canvas.prompt_lengths)).max())


def stray_room(strays: int, width: int) -> int:
    """The static room in which so many masks before a block are looked at, on rows of `width`."""
    return next((room for room in _STRAY_ROOMS if room >= strays), width)


@functools.partial(jax.jit, static_argnames="strategy")
def begin_block(canvas: Canvas, strategy: Strategy, numbers: Numbers, index: jax.Array) -> tuple[Canvas, BlockSurvey]:
    """The canvas with block `index`, [] or [B] int32, begun in every row, and what to run it with.

    A row that is in the midst of that very block goes on where it is.
    Steps are shared out by each row's own number of blocks, so that they do not depend on batch mates, and a row whose
    blocks are over rests. With a threshold a block may take as many steps as it has masks to fill.
    """
    ids = jnp.arange(canvas.tokens.shape[-1], dtype=jnp.int32)
    lengths, size = canvas.lengths, strategy.block_length
    start = jnp.minimum(canvas.prompt_lengths + index * size, lengths)
    end = jnp.minimum(start + size, lengths)
    here = (canvas.tokens == strategy.mask_id) & (ids >= start[:, None]) & (ids < end[:, None])
    masks = jnp.sum(here, axis=-1, dtype=jnp.int32)
    own_blocks = -(-(lengths - canvas.prompt_lengths) // size)
    if strategy.schedule in ("threshold", "factor"):
        before = (canvas.tokens == strategy.mask_id) & (ids < end[:, None])
        steps = jnp.sum(before, axis=-1, dtype=jnp.int32)
        # Numbered by what the row itself has to fill: draws must not depend on batch mates.
        first_step = index * (lengths - jnp.sum(canvas.given, axis=-1, dtype=jnp.int32))
    else:
        steps, first_step = block_steps(numbers.steps, own_blocks, index, strategy.step_split)
        # Filling in: never more steps than holes, whatever the other texts need.
        steps = jnp.where(canvas.prompt_lengths == 0, jnp.minimum(steps, jnp.maximum(masks, 1)), steps)
    steps = jnp.where(index < jnp.maximum(own_blocks, 1), steps, 0)
    index = jnp.broadcast_to(index, start.shape)
    block = Block(start, end, masks, steps, first_step, index, jnp.zeros_like(index))
    block = jax.tree.map(lambda new, old: jnp.where(index == canvas.block.index, old, new), block, canvas.block)
    canvas = canvas.replace(block=block)
    window = block.start
    if strategy.windows is None and strategy.cache == "none":
        window = block_window_start(canvas, strategy)
    strays = jnp.sum(competing(canvas, strategy) & (ids < window[:, None]), axis=-1, dtype=jnp.int32)
    strays, suffix = (jnp.max(jnp.where(canvas.done, 0, count)) for count in (strays, lengths - block.start))
    return canvas, BlockSurvey(canvas.done.all(), rows_at_work(canvas, strategy).any(), strays, suffix)


@functools.partial(jax.jit, static_argnames=("denoiser", "strategy", "strays", "span", "together"))
def run_block(
    denoiser: Any,
    params: Any,
    canvas: Canvas,
    strategy: Strategy,
    numbers: Numbers,
    hmm: HMM | None = None,
    *,
    strays: int = 0,
    span: int = 0,
    together: bool = True,
) -> Canvas:
    """The steps of the blocks that the canvas has begun, in one loop on the device; arguments as in `denoise_step`.

    span: static, from `cache.cache_span`; without effect where nothing is kept between steps.
    together: static; the loop ends when no row has anything left to fill in its block, else as soon as one row has not,
      so that another block or another row can take its place.

    Rows whose block is over and holds a stop id are done.
    """
    at_work = rows_at_work(canvas, strategy)

    def working(canvas: Canvas):
        now = rows_at_work(canvas, strategy)
        return now.any() if together else now.any() & jnp.all(now == at_work)

    def step(canvas: Canvas, memory: Memory | None = None):
        return take_step(denoiser, params, canvas, strategy, numbers, hmm, memory, strays)

    def steps_to_refresh(canvas: Canvas):
        # The memory is constant in the inner loop, so that no step copies it.
        memory = refresh(denoiser, params, canvas, strategy, strays, span)

        def lasting(canvas: Canvas):
            return working(canvas) & jnp.all(canvas.block.step - memory.step < numbers.cache_refresh)

        return lax.while_loop(lasting, lambda canvas: step(canvas, memory), canvas)

    body = step if strategy.cache == "none" else steps_to_refresh
    return stop_rows(lax.while_loop(working, body, canvas), strategy)


def stop_rows(canvas: Canvas, strategy: Strategy) -> Canvas:
    """The canvas with rows done whose block is over and whose generation so far holds a stop id before any mask.

    A row in the midst of its block is not looked at: when it ends must not depend on its batch mates.
    """
    if not strategy.stop_ids:
        return canvas
    width = canvas.tokens.shape[-1]
    ids = jnp.arange(width, dtype=jnp.int32)
    finished = (ids >= canvas.prompt_lengths[:, None]) & (ids < canvas.block.end[:, None])
    stops = finished & jnp.isin(canvas.tokens, jnp.asarray(strategy.stop_ids, jnp.int32))
    first_stop = jnp.min(jnp.where(stops, ids, width), axis=-1)
    first_mask = jnp.min(jnp.where(finished & (canvas.tokens == strategy.mask_id), ids, width), axis=-1)
    over = ~rows_at_work(canvas, strategy)
    return canvas.replace(done=canvas.done | (over & (first_stop < first_mask)))


def raise_if_bad(bad: np.ndarray, names: Sequence[int] | None = None) -> None:
    """Raises a FloatingPointError naming rows whose logits were not finite, and `bad` [B] int32, the steps (-1: none).

    names: the rows' numbers, where they are not their places in the canvas.
    """
    if (bad >= 0).any():
        names = range(len(bad)) if names is None else names
        where = ", ".join(f"row {names[row]} at step {bad[row]}" for row in np.flatnonzero(bad >= 0)[:8])
        raise FloatingPointError(
            f"the backbone's logits were NaN or infinite in {where}; check the weights (a truncated or corrupt "
            "checkpoint?) and try dtype='float32'"
        )


def check_fit(denoiser: Any, strategy: Strategy, numbers: Numbers, hmm: HMM | None, blocks: int) -> None:
    """Raises a ValueError where denoiser, strategy, circuit and canvas do not fit each other."""
    if strategy.cache != "none" and not isinstance(denoiser, CachedDenoiser):
        raise ValueError(
            f"cache={strategy.cache!r} needs a denoiser that can compute positions by themselves, which "
            f"{type(denoiser).__name__} cannot; see cache.CachedDenoiser, or set cache='none'"
        )
    if strategy.coupling != "none":
        if hmm is None:
            raise ValueError(
                f"coupling={strategy.coupling!r} needs a circuit, but none was given; pass hmm= or set coupling='none'"
            )
        if hmm.modulation is not None:
            check_hidden(denoiser)
        if hmm.length != strategy.window_length:
            raise ValueError(
                f"the circuit covers {hmm.length} tokens, the strategy's windows {strategy.window_length}; "
                f"call DecodeConfig.split with circuit_length={hmm.length}"
            )
    if strategy.schedule in ("even", "timestep") and int(numbers.steps) < blocks:
        raise ValueError(
            f"steps={int(numbers.steps)} for {blocks} blocks: every block needs at least one step; "
            f"use steps>={blocks} or a longer block_length"
        )


def _shard_rows(canvas: Canvas, mesh: jax.sharding.Mesh) -> Canvas:
    """The canvas with its rows laid out over the mesh's data axis."""
    return jax.device_put(canvas, batch_sharding(mesh))
