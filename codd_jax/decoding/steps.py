"""One denoising step, from canvas to canvas, as one compiled program."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from codd_jax.circuits import HMM
from codd_jax.decoding import randomness
from codd_jax.decoding.blocks import block_outcome
from codd_jax.decoding.cache import Memory, read_memory, refresh
from codd_jax.decoding.canvas import Canvas
from codd_jax.decoding.denoiser import Reader, read_canvas
from codd_jax.decoding.dynamic import windowed_outcome
from codd_jax.decoding.regions import rows_at_work, write
from codd_jax.decoding.strategy import Numbers, Strategy


@functools.partial(jax.jit, static_argnames=("denoiser", "strategy", "strays"))
def denoise_step(
    denoiser: Any,
    params: Any,
    canvas: Canvas,
    strategy: Strategy,
    numbers: Numbers,
    hmm: HMM | None = None,
    *,
    strays: int = 0,
) -> Canvas:
    """One step of the block that the canvas has begun: the backbone once, the circuit where it is due, a commit.

    A step by itself runs on the whole canvas, also where the strategy keeps keys and values: see `cached_step`.

    Args:
      denoiser: static, see `denoiser.Denoiser`; params: its parameters.
      canvas: after `loop.begin_block`. strategy: static; numbers: traced.
      hmm: the circuit, None without one.
      strays: static room for masks left before the block's window (in the prompt, or where the mask id itself was
        predicted); they compete with the block's own, as in the reference.
    """
    return take_step(denoiser, params, canvas, strategy, numbers, hmm, strays)


@functools.partial(jax.jit, static_argnames=("denoiser", "strategy", "strays", "span"))
def refresh_memory(
    denoiser: Any, params: Any, canvas: Canvas, strategy: Strategy, *, strays: int = 0, span: int = 0
) -> Memory:
    """`cache.refresh` as a program of its own; strays and span as in `loop.run_block`."""
    return refresh(denoiser, params, canvas, strategy, strays, span)


@functools.partial(jax.jit, static_argnames=("denoiser", "strategy", "strays"))
def cached_step(
    denoiser: Any,
    params: Any,
    canvas: Canvas,
    memory: Memory,
    strategy: Strategy,
    numbers: Numbers,
    hmm: HMM | None = None,
    *,
    strays: int = 0,
) -> Canvas:
    """`denoise_step` with the keys and values of a refresh; the first step after it is that of the whole canvas."""
    read = read_memory(denoiser, params, memory, canvas, strategy, numbers)
    return commit_step(read, canvas, strategy, numbers, hmm, strays)


def take_step(denoiser, params, canvas: Canvas, strategy: Strategy, numbers: Numbers, hmm, strays: int) -> Canvas:
    """`denoise_step` without its own compilation, for the loop."""
    read = read_canvas(denoiser, params, canvas.tokens, canvas.given, canvas.lengths, canvas.call, strategy, numbers)
    return commit_step(read, canvas, strategy, numbers, hmm, strays)


def commit_step(read: Reader, canvas: Canvas, strategy: Strategy, numbers: Numbers, hmm, strays: int) -> Canvas:
    """What a step does once the backbone has run: circuit, ranking, commit."""
    if hmm is not None and strategy.normalization is not None:
        hmm = hmm.replace(normalization=strategy.normalization)
    active = rows_at_work(canvas, strategy)
    keys = randomness.step_keys(canvas.keys, canvas.call)
    decide = block_outcome if strategy.windows is None else windowed_outcome
    outcome = decide(read, canvas, keys, active, strategy, numbers, hmm, strays)

    bad = active & ~outcome.finite
    active = active & outcome.finite
    return canvas.replace(
        tokens=write(canvas.tokens, outcome, active),
        steps_used=canvas.steps_used + active,
        pc_failures=canvas.pc_failures + (active & outcome.failed),
        bad_step=jnp.where(bad & (canvas.bad_step < 0), canvas.call, canvas.bad_step),
        done=canvas.done | bad,
        block=canvas.block.replace(step=canvas.block.step + 1),
    )
