"""Which of the proposals a step commits: the k surest, or all above a threshold."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from codd_jax.decoding import schedule
from codd_jax.decoding.canvas import Block
from codd_jax.decoding.strategy import Numbers, Strategy


def quota(block: Block, candidates: jax.Array, strategy: Strategy, numbers: Numbers) -> jax.Array:
    """[B] int32, how many of the `candidates` [B, P] (bool) the schedule lets this step commit, per row."""
    if strategy.schedule == "timestep":
        masks = jnp.sum(candidates, axis=-1, dtype=jnp.int32)
        return schedule.timestep_quota(masks, block.step, block.steps, numbers.eps)
    return schedule.even_quota(block.masks, block.step, block.steps)


def top_ranked(order: jax.Array, candidates: jax.Array, count: jax.Array) -> jax.Array:
    """[B, P] bool: the `count` [B] candidates with the highest `order` [B, P]; ties go to the lowest index."""
    return candidates & (ranks(order, candidates) < count[:, None])


def ranks(order: jax.Array, candidates: jax.Array) -> jax.Array:
    """[B, P] int32: 0 for the highest candidate, candidates before all others, ties by index."""
    floor = jnp.finfo(jnp.float32).min
    order = jnp.where(candidates, jnp.maximum(order, floor), -jnp.inf)
    by_rank = jnp.argsort(-order, axis=-1, stable=True)
    return jnp.argsort(by_rank, axis=-1).astype(jnp.int32)


def above_threshold(key: jax.Array, candidates: jax.Array, threshold: jax.Array, factor: bool) -> jax.Array:
    """[B, P] bool: candidates whose confidence reaches the threshold, and always the surest (Fast-dLLM, 2505.22618).

    key: log-odds [B, P]. With `factor` the n-th surest is taken while (n + 1)(1 - confidence) < threshold.
    """
    rank = ranks(key, candidates)
    doubt = jax.nn.sigmoid(-key)
    sure = (rank + 2).astype(jnp.float32) * doubt < threshold if factor else doubt <= 1.0 - threshold
    return candidates & (sure | (rank == 0))


def select(
    order: jax.Array, key: jax.Array, candidates: jax.Array, block: Block, strategy: Strategy, numbers: Numbers
) -> jax.Array:
    """[B, P] bool: what the step commits. order: from `order_keys`; key: from the proposal."""
    if strategy.schedule in ("threshold", "factor"):
        return above_threshold(key, candidates, numbers.threshold, strategy.schedule == "factor")
    if strategy.quota == "batch":
        joint = candidates.reshape(1, -1)
        count = quota(block, joint, strategy, numbers)[:1]
        return top_ranked(order.reshape(1, -1), joint, count).reshape(candidates.shape)
    return top_ranked(order, candidates, quota(block, candidates, strategy, numbers))
