"""How many tokens a step may commit: even quotas per block (LLaDA) and the timestep schedule (Dream).

All functions take the step counts as traced numbers, so one program serves every number of steps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def block_steps(steps: jax.Array, num_blocks: jax.Array, block: jax.Array, split: str) -> tuple[jax.Array, jax.Array]:
    """Steps of one block, and the steps of the blocks before it.

    `split="even"` hands the remainder of `steps / num_blocks` to the earliest blocks; "floor" drops it, as the
    published loops do. All arguments broadcast; returns two int32 arrays.
    """
    num_blocks = jnp.maximum(num_blocks, 1)
    base = steps // num_blocks
    extra = steps % num_blocks if split == "even" else jnp.zeros_like(base)
    return base + (block < extra), block * base + jnp.minimum(block, extra)


def even_quota(masks: jax.Array, step: jax.Array, steps: jax.Array) -> jax.Array:
    """Tokens to commit at `step` of `steps` when `masks` positions were masked at the block's start.

    The remainder goes to the earliest steps (LLaDA, arXiv 2502.09992, linear noise schedule). All int32, broadcast.
    """
    steps = jnp.maximum(steps, 1)
    return masks // steps + (step < masks % steps)


def timestep(step: jax.Array, steps: jax.Array, eps: jax.Array) -> jax.Array:
    """Noise level before `step` of `steps`: the float32 line from 1 to `eps`, bit for bit as PyTorch draws it.

    The lower half is drawn from the other end. `1 - s/t` cancels, and a quota is its floor: one unit in the last
    place more or less changes how many tokens a step commits.
    """
    step, steps = jnp.asarray(step, jnp.int32), jnp.maximum(steps, 1).astype(jnp.int32)
    slope = (eps - 1.0) / steps.astype(jnp.float32)
    rising = _exact_line(jnp.float32(1.0), slope, step)
    falling = _exact_line(eps, -slope, steps - step)
    return jnp.where(step < (steps + 1) // 2, rising, falling)


def timestep_quota(masks: jax.Array, step: jax.Array, steps: jax.Array, eps: jax.Array) -> jax.Array:
    """Tokens to commit at `step` of `steps` when `masks` positions are masked now: `int(masks · (1 - s/t))`.

    The last step commits all of them (Dream, arXiv 2508.15487). int32, broadcast.
    """
    before, after = timestep(step, steps, eps), timestep(step + 1, steps, eps)
    share = jnp.floor(masks.astype(jnp.float32) * (1.0 - after / before)).astype(jnp.int32)
    return jnp.where(step >= steps - 1, masks, share)


def _exact_line(origin: jax.Array, slope: jax.Array, index: jax.Array) -> jax.Array:
    """`origin + slope · index`, rounded once to float32 whether or not the compiler fuses multiply and add.

    The slope is cut into two 12-bit halves whose products with an index below 4,096 are exact.
    """
    index = index.astype(jnp.float32)
    high = lax.reduce_precision(slope, exponent_bits=8, mantissa_bits=11)
    product, rest = high * index, (slope - high) * index
    total = origin + product
    carried = total - origin
    error = (origin - (total - carried)) + (product - carried)
    return total + (error + rest)
