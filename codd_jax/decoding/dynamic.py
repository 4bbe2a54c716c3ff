"""A step of full diffusion with dynamic windowing: windows lie over the positions to commit (paper, section 5.2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from codd_jax.circuits import HMM
from codd_jax.decoding.canvas import Canvas
from codd_jax.decoding.coupling import (
    Window,
    activated,
    any_order_draw,
    latent_logits,
    open_window,
    window_context,
)
from codd_jax.decoding.denoiser import Reader
from codd_jax.decoding.proposals import (
    CHUNK,
    Proposal,
    order_keys,
    propose,
    propose_in_chunks,
    window_order_keys,
)
from codd_jax.decoding.regions import Outcome, competing, stray_positions
from codd_jax.decoding.selection import quota, select, top_ranked
from codd_jax.decoding.strategy import Numbers, Strategy
from codd_jax.decoding.windows import best_window, next_window


class _Survey(NamedTuple):
    """The backbone's proposals over the whole row, all [B, L]; `key` and `order` mean nothing off the candidates."""

    candidates: jax.Array
    token: jax.Array
    key: jax.Array
    order: jax.Array
    window_key: jax.Array
    window_order: jax.Array


def windowed_outcome(
    read: Reader, canvas: Canvas, keys, active, strategy: Strategy, numbers: Numbers, hmm: HMM | None, strays: int
) -> Outcome:
    """Ranks with the backbone, lays windows of the circuit over the choice, and draws the choice inside them."""
    survey, finite = _survey(read, canvas, keys, strategy, numbers, strays)
    decide = _cover if strategy.windows == "cover" else _best
    token, commit, failed = decide(read, canvas, survey, keys, active, strategy, numbers, hmm)
    width = canvas.tokens.shape[-1]
    positions = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), canvas.tokens.shape)
    return Outcome(positions, token, commit, failed, finite)


def _survey(read, canvas, keys, strategy, numbers, strays: int) -> tuple[_Survey, jax.Array]:
    """Proposals for the block's positions and the masks left before it, and whether their logits were finite [B]."""
    region = open_window(canvas.tokens, canvas.lengths, canvas.block.start, strategy.block_length, strategy.mask_id)
    positions, exists = region.positions, region.inside
    if strays:
        where, found = stray_positions(competing(canvas, strategy), canvas.block.start, strays)
        positions = jnp.concatenate([where, positions], axis=-1)
        exists = jnp.concatenate([found, exists], axis=-1)
    if positions.shape[-1] > CHUNK:
        proposal = propose_in_chunks(read, positions, keys, strategy, numbers)
    else:
        proposal = propose(read(positions), positions, keys, strategy, numbers)
    order = order_keys(proposal, positions, keys, strategy, numbers)
    window_order = window_order_keys(proposal, positions, keys, strategy, numbers)

    def spread(values):
        return _scatter(jnp.zeros(canvas.tokens.shape, values.dtype), positions, values, exists)

    survey = _Survey(
        competing(canvas, strategy),
        spread(proposal.token),
        spread(proposal.key),
        spread(order),
        spread(proposal.window_key),
        spread(window_order),
    )
    return survey, jnp.all(proposal.finite | ~exists, axis=-1)


def _cover(read, canvas, survey: _Survey, keys, active, strategy, numbers, hmm):
    """The fewest windows over the positions that the backbone would commit; exactly those are committed.

    One window per row at a time, until every row's are done. All windows see the canvas as it was before the step, so
    where neighbours overlap each sums over the other's positions.
    """
    key, order = survey.key, survey.order
    if strategy.window_remasking != strategy.remasking:
        key, order = survey.window_key, survey.window_order
    commit = select(order, key, survey.candidates, canvas.block, strategy, numbers)
    failed = jnp.zeros(canvas.done.shape, bool)
    if strategy.coupling == "none":
        return survey.token, commit, failed

    def more(state):
        return state[0].any()

    def lay(state):
        remaining, token, failed = state
        start, group = next_window(remaining, canvas.lengths, strategy.window_length)
        window = open_window(canvas.tokens, canvas.lengths, start, strategy.window_length, strategy.mask_id)
        targets = window.inside & jnp.take_along_axis(group, window.positions, axis=-1)
        use = activated(window, numbers) & targets.any(axis=-1)
        drawn, possible = lax.cond(
            use.any(),
            lambda: _draw_targets(read, hmm, window, targets, keys, use, strategy, numbers),
            lambda: (window.tokens, jnp.ones(use.shape, bool)),
        )
        token = _scatter(token, window.positions, drawn, targets & (use & possible)[:, None])
        return remaining & ~group, token, failed | (use & ~possible)

    _, token, failed = lax.while_loop(more, lay, (commit & active[:, None], survey.token, failed))
    return token, commit, failed


def _draw_targets(read, hmm, window: Window, targets, keys, use, strategy, numbers):
    """Tokens [B, T] drawn from the circuit at all `targets`, and whether the evidence was possible [B]."""
    logits, context = read(window.positions), window_context(hmm, read, window)
    if strategy.coupling == "any_order":
        count = jnp.sum(targets, axis=-1, dtype=jnp.int32)
        token, _, failed = any_order_draw(hmm, logits, window, targets, count, keys, use, strategy, numbers, context)
        return token, ~failed
    coupled, possible = latent_logits(hmm, logits, window, keys, strategy, numbers, context)
    coupled = jnp.where(possible[:, None, None], coupled, logits)
    return propose(coupled, window.positions, keys, strategy, numbers).token, possible


def _best(read, canvas, survey: _Survey, keys, active, strategy, numbers, hmm):
    """The published code's way: one window of best coverage, forced positions outside it, the best inside it.

    The choice outside the window is forced whether or not the circuit is used; without it the rest of the quota goes
    to the surest positions anywhere.
    """
    width = canvas.tokens.shape[-1]
    ids = jnp.arange(width, dtype=jnp.int32)
    count = quota(canvas.block, survey.candidates, strategy, numbers)
    chosen = top_ranked(survey.window_order, survey.candidates, count)
    start, coverage = best_window(chosen, canvas.lengths, strategy.window_length)
    within = (ids >= start[:, None]) & (ids < start[:, None] + strategy.window_length)
    forced = chosen & ~within
    token, order = survey.token, survey.order
    failed = use = jnp.zeros(canvas.done.shape, bool)
    picked = jnp.zeros(canvas.tokens.shape, bool)
    if strategy.coupling != "none":
        window = open_window(canvas.tokens, canvas.lengths, start, strategy.window_length, strategy.mask_id)
        use = activated(window, numbers) & (coverage > 1) & active
        token, order, picked, failed = lax.cond(
            use.any(),
            lambda: _redraw(read, hmm, window, survey, forced, count, keys, use, strategy, numbers),
            lambda: (token, order, picked, failed),
        )
        use = use & ~failed
    if strategy.coupling == "any_order":
        alone = survey.candidates & ~forced
        alone = top_ranked(order, alone, count - jnp.sum(forced, axis=-1, dtype=jnp.int32))
        return token, forced | jnp.where(use[:, None], picked, alone), failed
    free = survey.candidates & ~forced & (within | ~use[:, None])
    rest = top_ranked(order, free, count - jnp.sum(forced, axis=-1, dtype=jnp.int32))
    return token, forced | rest, failed


def _redraw(read, hmm, window: Window, survey: _Survey, forced, count, keys, use, strategy, numbers):
    """The survey's tokens and order with the window's part coupled, any-order's own picks, and failures."""
    logits, context = read(window.positions), window_context(hmm, read, window)
    inside = window.masked & jnp.take_along_axis(survey.candidates, window.positions, axis=-1)
    if strategy.coupling == "any_order":
        count = count - jnp.sum(forced, axis=-1, dtype=jnp.int32)
        drawn, chosen, failed = any_order_draw(
            hmm, logits, window, inside, count, keys, use, strategy, numbers, context
        )
        taken = inside & (use & ~failed)[:, None]
        token = _scatter(survey.token, window.positions, drawn, taken & chosen)
        picked = _scatter(jnp.zeros(survey.token.shape, bool), window.positions, chosen, taken)
        return token, survey.order, picked, failed
    coupled, possible = latent_logits(hmm, logits, window, keys, strategy, numbers, context)
    taken = inside & (use & possible)[:, None]
    coupled = jnp.where((use & possible)[:, None, None], coupled, logits)
    proposal: Proposal = propose(coupled, window.positions, keys, strategy, numbers)
    order = order_keys(proposal, window.positions, keys, strategy, numbers)
    return (
        _scatter(survey.token, window.positions, proposal.token, taken),
        _scatter(survey.order, window.positions, order, taken),
        jnp.zeros(survey.token.shape, bool),
        use & ~possible,
    )


def _scatter(target: jax.Array, positions: jax.Array, values: jax.Array, where: jax.Array) -> jax.Array:
    """`target` [B, L] with `values` [B, P] at `positions` where `where` is true."""
    rows = jnp.arange(target.shape[0])[:, None]
    return target.at[rows, jnp.where(where, positions, target.shape[-1])].set(values, mode="drop")
