"""One denoising step, from canvas to canvas, as one compiled program."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from codd_jax.circuits import HMM
from codd_jax.decoding import randomness
from codd_jax.decoding.blocks import block_outcome
from codd_jax.decoding.cache import Memory, read_step
from codd_jax.decoding.canvas import Canvas
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
    memory: Memory | None = None,
    *,
    strays: int = 0,
) -> Canvas:
    """One step of the block that the canvas has begun: the backbone once, the circuit where it is due, a commit.

    Args:
      denoiser: static, see `denoiser.Denoiser`; params: its parameters.
      canvas: after `loop.begin_block`. strategy: static; numbers: traced.
      hmm: the circuit, None without one.
      memory: the keys and values of a `cache.refresh`; None runs the backbone on the whole canvas.
      strays: static room for masks left before the block's window (in the prompt, or where the mask id itself was
        predicted); they compete with the block's own, as in the reference.
    """
    return take_step(denoiser, params, canvas, strategy, numbers, hmm, memory, strays)


def take_step(
    denoiser, params, canvas: Canvas, strategy: Strategy, numbers: Numbers, hmm, memory: Memory | None, strays: int
) -> Canvas:
    """`denoise_step` without its own compilation, for the loop."""
    read = read_step(denoiser, params, canvas, memory, strategy, numbers)
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
