"""Heads for a circuit that is to follow the context.

Trained from scratch at the circuit's own rate, heads explain the latent states away and the coupling is lost. They are
therefore put on a trained circuit and learn slowly while the circuit goes on learning: Adam at 0.003 for the heads and
0.02 for the circuit (`CircuitTraining(rate=0.02, modulation_rate=0.003)`). Heads scale their inputs, so that one rate
serves backbones of every width.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from codd_jax.circuits import HMM, Modulation
from codd_jax.circuits.modulation import check_kinds

# Adam's, for a circuit that learns together with its heads.
RATE_BESIDE_HEADS = 0.02
# Of the emissions' low-rank change.
RANK = 4


def parse_modulation(text: str) -> tuple[tuple[str, ...], bool]:
    """("latent,emission,noise") → (kinds, whether the heads are told the noise level); ValueError for unknown words."""
    words = [word.strip() for word in text.replace("+", ",").split(",") if word.strip()]
    return check_kinds([word for word in words if word != "noise"]), "noise" in words


def attach_modulation(
    hmm: HMM, width: int, kinds: Sequence[str] = ("latent",), *, key: jax.Array, rank: int = RANK, noise: bool = False
) -> HMM:
    """The circuit with heads of zero, which change nothing until they are trained.

    Args:
      hmm: a circuit, trained as a rule; heads that it has are replaced.
      width: of the backbone's hidden states.
      kinds: "latent" (E.1), "transition" and "emission" (E.2), one or more.
      key: draws the distributions that emissions are mixed with.
      rank: how many of those, for "emission".
      noise: tell the heads how much of the window is masked.

    Raises:
      ValueError: unknown kinds, or a rank below 1.
    """
    kinds = check_kinds(kinds)
    if rank < 1:
        raise ValueError(f"rank is {rank}; emissions are mixed with at least one distribution")
    basis = emission_basis(key, hmm, rank) if "emission" in kinds else None
    return hmm.with_modulation(Modulation.zeros(kinds, width, hmm.num_states, basis=basis, noise=noise))


def emission_basis(key: jax.Array, hmm: HMM, rank: int) -> jax.Array:
    """Logits [rank, V] of random mixtures of the circuit's own emissions: plausible tokens, and no two rows alike."""
    weights = jax.nn.softmax(2 * jax.random.normal(key, (rank, hmm.num_states)), axis=-1)
    emission = hmm.emission.astype(jnp.float32)
    emission = emission if emission.ndim == 2 else emission.mean(0)
    return jnp.log(jnp.matmul(weights, emission, precision=jax.lax.Precision.HIGHEST) + 1e-30)
