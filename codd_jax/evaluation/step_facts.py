"""What a recorder reads off one step: how sure the backbone was, and where the circuit's windows lay."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from codd_jax.decoding.blocks import block_window_start
from codd_jax.decoding.cache import Memory, read_step
from codd_jax.decoding.canvas import Canvas
from codd_jax.decoding.coupling import activated, open_window
from codd_jax.decoding.strategy import Numbers, Strategy
from codd_jax.decoding.windows import best_window, cover


@functools.partial(jax.jit, static_argnames=("denoiser", "strategy"))
def probabilities_of(
    denoiser,
    params,
    canvas: Canvas,
    memory: Memory | None,
    places: jax.Array,
    tokens: jax.Array,
    strategy: Strategy,
    numbers: Numbers,
) -> jax.Array:
    """The backbone's probabilities [B, P] of `tokens` [B, L] at `places` [B, P], given canvas and memory."""
    read = read_step(denoiser, params, canvas, memory, strategy, numbers)
    log_probs = jax.nn.log_softmax(read(places), axis=-1)
    chosen = jnp.take_along_axis(tokens, places, axis=-1)
    return jnp.exp(jnp.take_along_axis(log_probs, chosen[..., None], axis=-1)[..., 0])


@functools.partial(jax.jit, static_argnames="strategy")
def windows_of(before: Canvas, after: Canvas, strategy: Strategy, numbers: Numbers) -> tuple[jax.Array, jax.Array]:
    """Starts [G] of the first row's windows in a step (-1 for none), and whether their masks let the circuit in [G].

    With windows "cover" they follow from what was committed. With "best" they are laid over it too, which is where the
    published code lays its window unless re-ranking inside it has moved the choice.
    """
    committed = before.tokens != after.tokens
    length = strategy.window_length
    enough = True
    if strategy.windows is None:
        starts = block_window_start(before, strategy)[:1]
    elif strategy.windows == "cover":
        starts = cover(committed, before.lengths, length)[0][0]
    else:
        start, coverage = best_window(committed, before.lengths, length)
        # For a single token the published code leaves the circuit out.
        starts, enough = start[:1], coverage[0] > 1

    def lets_in(start):
        start = jnp.full_like(before.lengths, start)
        return activated(open_window(before.tokens, before.lengths, start, length, strategy.mask_id), numbers)[0]

    return starts, jax.vmap(lets_in)(starts) & enough
