"""The circuit inside a denoising step: when it is used (paper, section 5.3), and what it makes of a window's logits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from codd_jax import circuits
from codd_jax.circuits import HMM
from codd_jax.circuits.any_order import sample_any_order_from_leaf
from codd_jax.circuits.context import Context, batch_axes
from codd_jax.decoding import randomness
from codd_jax.decoding.denoiser import Reader
from codd_jax.decoding.proposals import draw_token
from codd_jax.decoding.scores import best_token, confidence, ranking_key
from codd_jax.decoding.strategy import Numbers, Strategy


class Window(NamedTuple):
    """One window of T positions per row.

    Attributes:
      start: [B] int32. positions: [B, T] int32, clipped to the row. tokens: [B, T] int32.
      inside: [B, T] bool, whether the position exists: a row shorter than T leaves some out.
      masked: [B, T] bool, existing and to be filled.
    """

    start: jax.Array
    positions: jax.Array
    tokens: jax.Array
    inside: jax.Array
    masked: jax.Array


def open_window(tokens: jax.Array, lengths: jax.Array, start: jax.Array, length: int, mask_id: int) -> Window:
    """The window of `length` positions at `start` [B] on rows `tokens` [B, L] of `lengths` [B]."""
    positions = start[:, None] + jnp.arange(length, dtype=jnp.int32)
    inside = positions < lengths[:, None]
    positions = jnp.clip(positions, 0, jnp.maximum(lengths - 1, 0)[:, None])
    here = jnp.take_along_axis(tokens, positions, axis=-1)
    return Window(start, positions, here, inside, inside & (here == mask_id))


def activated(window: Window, numbers: Numbers) -> jax.Array:
    """[B] bool: whether the masked share of the window is strictly below `pc_frac` (above it, reversed)."""
    masked = jnp.sum(window.masked, axis=-1).astype(jnp.float32)
    share = masked / jnp.maximum(jnp.sum(window.inside, axis=-1), 1).astype(jnp.float32)
    passes = jnp.where(numbers.reverse_frac, share > numbers.pc_frac, share < numbers.pc_frac)
    return passes & (masked > 0)


def potentials(logits: jax.Array, window: Window, strategy: Strategy, numbers: Numbers) -> jax.Array:
    """log φ [B, T, V] of the window: log_softmax(logits / τ), τ only where 0 < τ < 1, as published.

    Positions beyond the row are no evidence: φ = 1 makes their leaf one and sums them out.
    """
    if strategy.pc_temperature_on == "potentials":
        logits = logits / _tau(numbers)
    log_phi = jax.nn.log_softmax(logits, axis=-1)
    return jnp.where(window.inside[..., None], log_phi, 0.0)


def window_context(hmm: HMM, read: Reader, window: Window) -> Context | None:
    """What the backbone's hidden states make of the circuit in each row's window; None for a static circuit.

    The noise level that heads may be told is the window's masked share. Positions beyond the row are not modulated.
    """
    if hmm.modulation is None:
        return None
    masked, inside = (jnp.sum(x, axis=-1).astype(jnp.float32) for x in (window.masked, window.inside))
    return circuits.modulate(hmm, read.hidden(window.positions), masked / jnp.maximum(inside, 1), window.inside)


def latent_logits(
    hmm: HMM,
    logits: jax.Array,
    window: Window,
    keys: jax.Array,
    strategy: Strategy,
    numbers: Numbers,
    context: Context | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Latent-variable sampling (paper, section 5.1): logits given a latent path drawn from its posterior.

    Args:
      logits: [B, T, V] of the backbone, after guidance. keys: [B] step keys. context: of the windows, see
        `window_context`.

    Returns:
      log φ_t(v) + log E[z_t, v], [B, T, V] (over τ with `pc_temperature_on="coupled"`), and whether the evidence is
      possible, [B] bool: false where the circuit excludes the known tokens.
    """
    log_phi = potentials(logits, window, strategy, numbers)
    known = window.inside & ~window.masked
    leaf = circuits.leaf_values(hmm, log_phi, window.tokens, known, context)
    keys = randomness.position_keys(keys, window.start, randomness.LATENT)
    axes = (None, 0, 0, batch_axes(context))
    path, log_z = jax.vmap(circuits.sample_latents_and_partition, in_axes=axes)(hmm, leaf, keys, context)
    coupled = jax.vmap(circuits.latent_logits, in_axes=axes)(hmm, log_phi, path, context)
    if strategy.pc_temperature_on == "coupled":
        coupled = coupled / _tau(numbers)
    return coupled, jnp.isfinite(log_z) & jnp.all(jnp.isfinite(jnp.max(coupled, axis=-1)), axis=-1)


def any_order_draw(
    hmm: HMM,
    logits: jax.Array,
    window: Window,
    targets: jax.Array,
    count: jax.Array,
    keys: jax.Array,
    use: jax.Array,
    strategy: Strategy,
    numbers: Numbers,
    context: Context | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Any-order sampling (paper, section 5.1): `count` tokens one by one, each known to the next.

    Args:
      logits: [B, T, V] of the backbone. targets: [B, T] bool, positions to choose from. count: [B] int32.
      keys: [B] step keys. use: [B] bool, rows that matter. context: of the windows, see `window_context`.

    Returns:
      token [B, T] int32, the positions that were chosen [B, T] bool, and where it failed [B] bool.
    """
    log_phi = potentials(logits, window, strategy, numbers)
    known = window.inside & ~window.masked
    leaf = circuits.leaf_values(hmm, log_phi, window.tokens, known, context)
    noise = randomness.order_gumbel(keys, window.positions)
    keys = randomness.position_keys(keys, window.start, randomness.ANY_ORDER)
    sharpness = _tau(numbers) if strategy.pc_temperature_on == "coupled" else jnp.float32(1.0)

    def draw(key, log_probs):
        token = draw_token(log_probs / sharpness, key, numbers)
        return token, log_probs[token]

    def one(log_phi, leaf, tokens, known, key, targets, count, noise, context):
        def surest(log_probs):
            rank = ranking_key(strategy.remasking, log_probs, best_token(log_probs)[1])
            warm = confidence(strategy.remasking, rank) / numbers.alg_temp + noise
            rank = jnp.where(numbers.alg_temp > 0, warm, rank)
            return jnp.where(jnp.isnan(rank), -jnp.inf, rank)  # a row without any probability ranks last

        order = "random" if strategy.remasking == "random" else surest
        return sample_any_order_from_leaf(
            hmm, log_phi, leaf, tokens, known, key, targets, count, order, draw, log_latent=context
        )

    count = jnp.where(use, count, 0)
    rows = (log_phi, leaf, window.tokens, known, keys, targets, count, noise)
    drawn = jax.vmap(one, in_axes=(*(0 for _ in rows), batch_axes(context)))(*rows, context)
    return drawn.tokens, drawn.drawn, use & ~drawn.possible


def _tau(numbers: Numbers) -> jax.Array:
    return jnp.where((numbers.pc_temperature > 0) & (numbers.pc_temperature < 1), numbers.pc_temperature, 1.0)
