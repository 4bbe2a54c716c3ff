"""Parameter updates from expected counts: EM, Anemone, dual-ratio, extended Baum-Welch.

Every rule is a pure function from a circuit and counts to a circuit. The likelihood rules raise log p(x); the last two
raise the conditional log-likelihood, for local and for global normalisation.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from codd_jax.circuits.hmm import HMM
from codd_jax.circuits.learning import Counts

# Emissions never reach zero: a token that the circuit excludes could not be decoded next to it.
EMISSION_FLOOR = 1e-30


@flax.struct.dataclass
class Momentum:
    """Running means of counts. mean: same tree as the counts; steps: [] int32, updates so far."""

    mean: Counts
    steps: jax.Array

    @classmethod
    def init(cls, hmm: HMM) -> Momentum:
        """The state before the first update."""
        return cls(Counts.zeros_like(hmm), jnp.zeros((), jnp.int32))

    def update(self, counts: Counts, decay: jax.Array | float) -> tuple[Counts, Momentum]:
        """(bias-corrected mean of the counts so far, next state); decay 0 returns the counts as they are."""
        steps = self.steps + 1
        mean = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, self.mean, counts)
        return jax.tree.map(lambda x: x / (1 - jnp.power(decay, steps)), mean), Momentum(mean, steps)


def em_update(hmm: HMM, counts: Counts, step_size=1.0, pseudocount=0.0) -> HMM:
    """θ ← (1-η)θ + η(F + α/n)/(ΣF + α) row by row; rows without any count stay as they are.

    Args:
      counts: expected counts under log p(x), summed over the batch.
      step_size: η in (0, 1]. pseudocount: α ≥ 0, shared by the n entries of a row.
    """

    def rule(theta, count):
        target, seen = _rows(count + pseudocount / count.shape[-1])
        return jnp.where(seen, (1 - step_size) * theta + step_size * target, theta)

    return _each(rule, hmm, counts)


def top_down_anchors(hmm: HMM) -> Counts:
    """Expected uses of each parameter in one window drawn from the circuit itself, in the shapes of `hmm`."""
    transition = jnp.broadcast_to(hmm.transition, (hmm.length - 1, hmm.num_states, hmm.num_states))

    def step(p, a):
        return jnp.matmul(p, a, precision=jax.lax.Precision.HIGHEST), p

    last, before = jax.lax.scan(step, hmm.initial, transition)
    marginals = jnp.concatenate([before, last[None]])
    visits = marginals if hmm.emission.ndim == 3 else marginals.sum(0)
    departures = before if hmm.transition.ndim == 3 else before.sum(0)
    return Counts(hmm.initial, departures[..., None] * hmm.transition, visits[..., None] * hmm.emission)


def anemone_update(hmm: HMM, counts: Counts, num_windows, step_size, pseudocount=0.0) -> HMM:
    """θ ← (G + α/n)/(ΣG + α), G = (η/C)F + (1-η)·anchor (arXiv 2505.19982).

    Args:
      counts: expected counts under log p(x), summed over C = `num_windows` windows (or their `Momentum`).
      step_size: η in (0, 1]. pseudocount: α ≥ 0.
    """
    return _anemone(hmm, counts, top_down_anchors(hmm), num_windows, step_size, pseudocount)


def dual_ratio_update(hmm: HMM, positive: Counts, negative, num_windows, step_size, pseudocount=0.0) -> HMM:
    """The locally normalised objective: E ← E·(G⁺ + α/V)/(G⁻ + αE), renormalised; π and A by `anemone_update`.

    Args:
      positive: counts F⁺ with the posterior of the locally normalised chain, x observed.
      negative: [H, V] or [T, H, V], the emission part of F⁻ under the same posterior.
      num_windows, step_size, pseudocount: as in `anemone_update`, for both counts.
    """
    anchors = top_down_anchors(hmm)
    latent = _anemone(hmm, positive, anchors, num_windows, step_size, pseudocount)
    rate = step_size / num_windows
    up = rate * positive.emission + (1 - step_size) * anchors.emission + pseudocount / hmm.vocab_size
    down = rate * negative + (1 - step_size) * anchors.emission + pseudocount * hmm.emission
    emission = hmm.emission * jnp.where(down > 0, up / jnp.where(down > 0, down, 1), 1)
    emission = jnp.maximum(_rows(emission)[0], EMISSION_FLOOR)
    return latent.replace(emission=emission)


def extended_baum_welch_update(hmm: HMM, positive: Counts, negative: Counts, num_windows, damping=1.0) -> HMM:
    """The globally normalised objective: θ ← normalise(F⁺ − F⁻ + D·θ), one D for each row.

    D is `damping` times the row's expected uses in `num_windows` windows, and at least twice what keeps every entry
    positive (times `damping` above 1). A caller that sees the conditional log-likelihood fall doubles `damping`.
    """
    anchors = jax.tree.map(lambda x: num_windows * x, top_down_anchors(hmm))

    def rule(theta, up, down, anchor):
        change = up - down
        used = theta > 0
        need = jnp.max(jnp.where(used, -change / jnp.where(used, theta, 1), 0), axis=-1, keepdims=True)
        scale = jnp.maximum(damping * anchor.sum(-1, keepdims=True), jnp.maximum(damping, 1) * 2 * need)
        moved, seen = _rows(jnp.where(used, change + scale * theta, 0))
        return jnp.where(seen, moved, theta)

    return _each(rule, hmm, positive, negative, anchors)


def _anemone(hmm: HMM, counts: Counts, anchors: Counts, num_windows, step_size, pseudocount) -> HMM:
    def rule(theta, count, anchor):
        target = (step_size / num_windows) * count + (1 - step_size) * anchor + pseudocount / count.shape[-1]
        moved, seen = _rows(target)
        return jnp.where(seen, moved, theta)

    return _each(rule, hmm, counts, anchors)


def _rows(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows divided by their sums, and [..., 1] whether the sum was positive; other rows come back as they are."""
    total = weights.sum(-1, keepdims=True)
    seen = total > 0
    return weights / jnp.where(seen, total, 1), seen


def _each(rule, hmm: HMM, *counts: Counts) -> HMM:
    """`hmm` with `rule(theta, *its counts)` applied to each of its three arrays."""
    names = ("initial", "transition", "emission")
    return hmm.replace(**{name: rule(getattr(hmm, name), *(getattr(c, name) for c in counts)) for name in names})
