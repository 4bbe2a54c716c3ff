"""A step of block diffusion: the block lies in one window of the circuit (paper, section 5.2 and algorithm 1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from codd_jax.circuits import HMM
from codd_jax.decoding.canvas import Canvas
from codd_jax.decoding.coupling import (
    activated,
    any_order_draw,
    latent_logits,
    open_window,
    window_context,
)
from codd_jax.decoding.denoiser import Reader
from codd_jax.decoding.proposals import CHUNK, Proposal, order_keys, propose, propose_in_chunks
from codd_jax.decoding.regions import Outcome, competing, stray_positions
from codd_jax.decoding.selection import select
from codd_jax.decoding.strategy import Numbers, Strategy


def block_window_start(canvas: Canvas, strategy: Strategy) -> jax.Array:
    """[B] int32: the window ends with the block; a short block's reaches left over known tokens."""
    if strategy.coupling == "none":
        return canvas.block.start
    start = canvas.block.end - strategy.window_length
    return jnp.clip(start, 0, jnp.maximum(canvas.lengths - strategy.window_length, 0))


def block_outcome(
    read: Reader, canvas: Canvas, keys, active, strategy: Strategy, numbers: Numbers, hmm: HMM | None, strays: int
) -> Outcome:
    """Block diffusion (paper, algorithm 1): the block fits one window, and only its logits are computed."""
    width = strategy.window_length if strategy.coupling != "none" else strategy.block_length
    start = block_window_start(canvas, strategy)
    window = open_window(canvas.tokens, canvas.lengths, start, width, strategy.mask_id)
    candidates = window.masked & (window.positions < canvas.block.end[:, None])
    positions, exists = window.positions, window.inside
    strays = min(strays, canvas.tokens.shape[-1])
    if strays:
        where, found = stray_positions(competing(canvas, strategy), start, strays)
        positions = jnp.concatenate([where, positions], axis=-1)
        candidates = jnp.concatenate([found, candidates], axis=-1)
        exists = jnp.concatenate([found, exists], axis=-1)

    failed = jnp.zeros(canvas.done.shape, bool)
    if strategy.coupling == "none" and positions.shape[-1] > CHUNK:
        proposal = propose_in_chunks(read, positions, keys, strategy, numbers)
        return _finish(proposal, positions, candidates, exists, failed, canvas, keys, strategy, numbers)

    logits = read(positions)
    use = activated(window, numbers) & active if strategy.coupling != "none" else failed
    if strategy.coupling == "latent":
        logits, failed = lax.cond(
            use.any(),
            lambda: _couple_tail(read, hmm, logits, strays, window, keys, use, strategy, numbers),
            lambda: (logits, failed),
        )
    proposal = propose(logits, positions, keys, strategy, numbers)
    outcome = _finish(proposal, positions, candidates, exists, failed, canvas, keys, strategy, numbers)
    if strategy.coupling != "any_order":
        return outcome
    count = jnp.sum(outcome.commit[:, strays:], axis=-1, dtype=jnp.int32)
    token, chosen, failed = lax.cond(
        use.any(),
        lambda: any_order_draw(
            hmm,
            logits[:, strays:],
            window,
            candidates[:, strays:],
            count,
            keys,
            use,
            strategy,
            numbers,
            window_context(hmm, read, window),
        ),
        lambda: (window.tokens, jnp.zeros(window.tokens.shape, bool), failed),
    )
    taken = (use & ~failed)[:, None]
    token = jnp.where(taken, token, outcome.token[:, strays:])
    chosen = jnp.where(taken, chosen, outcome.commit[:, strays:])
    return outcome._replace(
        token=jnp.concatenate([outcome.token[:, :strays], token], axis=-1),
        commit=jnp.concatenate([outcome.commit[:, :strays], chosen], axis=-1),
        failed=failed,
    )


def _couple_tail(read, hmm, logits, strays: int, window, keys, use, strategy, numbers) -> tuple[jax.Array, jax.Array]:
    """Logits with the window's part coupled where `use` [B] and possible, and where it failed [B]."""
    context = window_context(hmm, read, window)
    coupled, possible = latent_logits(hmm, logits[:, strays:], window, keys, strategy, numbers, context)
    tail = jnp.where((use & possible)[:, None, None], coupled, logits[:, strays:])
    return jnp.concatenate([logits[:, :strays], tail], axis=1), use & ~possible


def _finish(proposal: Proposal, positions, candidates, exists, failed, canvas, keys, strategy, numbers) -> Outcome:
    """The outcome of committing the surest proposals."""
    order = order_keys(proposal, positions, keys, strategy, numbers)
    commit = select(order, proposal.key, candidates, canvas.block, strategy, numbers)
    finite = jnp.all(proposal.finite | ~exists, axis=-1)
    return Outcome(positions, proposal.token, commit, failed, finite)
