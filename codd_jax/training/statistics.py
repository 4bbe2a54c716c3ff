"""Sums over windows: likelihoods, gradients and counts, a chunk of windows at a time, over all devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from codd_jax.circuits import HMM
from codd_jax.sharding import AXES
from codd_jax.training.objective import coupled_log_likelihoods, factorised_log_likelihoods
from codd_jax.training.potentials import Head, WindowPotentials

# w(t) of a window by its masked share t: how much its log-likelihood counts.
WEIGHTINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "uniform": jnp.ones_like,
    "1/sqrt(t)": lambda share: jnp.where(share > 0, jax.lax.rsqrt(jnp.maximum(share, 1e-6)), 0),
    "1/t": lambda share: jnp.where(share > 0, 1 / jnp.maximum(share, 1e-6), 0),
}
BINS = 10


@struct.dataclass
class Nats:
    """Negative log-likelihoods of masked tokens, summed by the masked share of their window.

    Attributes:
      backbone, coupled: [BINS] nats. tokens: [BINS], masked tokens. Bin i has shares in (i, i + 1] / BINS.
      failures: windows that the circuit holds for impossible; they are left out of both sums.
    """

    backbone: jax.Array
    coupled: jax.Array
    tokens: jax.Array
    failures: jax.Array

    @classmethod
    def zeros(cls) -> Nats:
        """Nothing seen yet."""
        return cls(*(jnp.zeros(BINS) for _ in range(3)), jnp.zeros(()))

    @classmethod
    def of(cls, factorised: jax.Array, coupled: jax.Array, masked: jax.Array) -> Nats:
        """From log-likelihoods [batch] and masks [batch, T]."""
        count = masked.sum(-1)
        place = jnp.clip(jnp.ceil(count * BINS / masked.shape[-1]).astype(jnp.int32) - 1, 0, BINS - 1)
        possible = coupled > -jnp.inf  # NaN is not impossible: it must show
        possible |= jnp.isnan(coupled)
        spread = lambda x: jnp.zeros(BINS).at[place].add(jnp.where(possible, x, 0))  # noqa: E731
        return cls(spread(-factorised), spread(-coupled), spread(count), jnp.sum(~possible, dtype=jnp.float32))


def potentials_of(head: Head, windows: WindowPotentials, dtype: Any) -> jax.Array:
    """Log-potentials [batch, T, V]; in bfloat16 they take half the memory and are off by up to 0.4 % of themselves."""
    return head.log_phi(windows.hidden).astype(dtype)


def log_likelihoods(
    hmm: HMM, head: Head, windows: WindowPotentials, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """(backbone alone, coupled) log-likelihoods [batch] of the windows' masked tokens."""
    log_phi = potentials_of(head, windows, dtype)
    coupled = coupled_log_likelihoods(hmm, log_phi, windows.tokens, windows.masked, windows.hidden, windows.noise)
    return factorised_log_likelihoods(log_phi, windows.tokens, windows.masked).astype(jnp.float32), coupled


def sum_over_windows(
    function: Callable[..., Any],
    mesh: jax.sharding.Mesh | None = None,
    chunk: int | None = None,
) -> Callable[..., Any]:
    """`function(windows, *shared)` → sums, made to run on parts of a batch whose results are added.

    Args:
      function: gives a pytree of sums over the windows it gets; it must not depend on which windows come together.
      mesh: its devices get equal parts of the batch, and their sums are added (psum); None: one device.
      chunk: windows that a device works on at a time; None: all of its part. What is held for a window is at least
        its potentials, T·V numbers.

    Returns:
      A function of the same arguments.
    """

    def local(windows: WindowPotentials, *shared: Any) -> Any:
        batch = windows.tokens.shape[0]
        size = batch if chunk is None else min(chunk, batch)
        if batch % size:
            raise ValueError(f"{batch} windows a device cannot be worked on {size} at a time; choose a divisor")
        if size == batch:
            return function(windows, *shared)
        parts = jax.tree.map(lambda x: x.reshape(batch // size, size, *x.shape[1:]), windows)
        shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts), *shared)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        add = lambda total, part: (jax.tree.map(jnp.add, total, function(part, *shared)), None)  # noqa: E731
        return jax.lax.scan(add, nothing, parts)[0]

    if mesh is None:
        return local

    def summed(windows: WindowPotentials, *shared: Any) -> Any:
        return jax.lax.psum(local(windows, *shared), AXES)

    def spread(windows: WindowPotentials, *shared: Any) -> Any:
        if windows.tokens.shape[0] % mesh.size:
            raise ValueError(
                f"a batch of {windows.tokens.shape[0]} windows cannot be split over {mesh.size} devices; choose a "
                "batch size that is a multiple of their number"
            )
        specs = (jax.P(AXES), *(jax.P() for _ in shared))
        return jax.shard_map(summed, mesh=mesh, in_specs=specs, out_specs=jax.P(), check_vma=False)(windows, *shared)

    return spread
