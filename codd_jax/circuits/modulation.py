"""Circuits that follow the context: small heads on the backbone's last hidden states (CoDD, appendix E).

A circuit whose heads are zero, as they are before training, is the static circuit. What the heads make of a window is a
`Context`, which every circuit function takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp

from codd_jax.circuits import logspace
from codd_jax.circuits.context import Context

if TYPE_CHECKING:
    from codd_jax.circuits.hmm import HMM

KINDS = ("latent", "transition", "emission")
# Cosines of the masked share, from a constant up: enough for a bump at either end.
NOISE_FEATURES = 4
# Inputs are scaled as by 128 / width: under Adam one learning rate then serves every width (arXiv 2203.03466).
_REFERENCE_WIDTH = 128.0
_PRECISION = jax.lax.Precision.HIGHEST


@flax.struct.dataclass
class Modulation:
    """The heads; D is the backbone's width, F the number of noise features (0 without), any of the kinds may be None.

    Attributes:
      latent: [D+F, H], latent-space modulation (E.1): potentials g_t(z) of the states.
      transition: [D+F, H], a gate u_t (E.2): A_t[z, z'] ∝ A[z, z'] exp(u_t(z')), see `gate_potential`.
      emission: [D+F, R, H], c_{t,r}(z) before max(·, 0) (E.2): E_t = (E + Σ_r c_{t,r} B_r) / (1 + Σ_r c_{t,r}).
      basis: [R, V], logits of the B_r; with `emission` or without either.
      width: D, static. noise: whether the heads are told the masked share of the window, static.
    """

    latent: jax.Array | None
    transition: jax.Array | None
    emission: jax.Array | None
    basis: jax.Array | None
    width: int = flax.struct.field(pytree_node=False)
    noise: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def zeros(
        cls,
        kinds: Sequence[str],
        width: int,
        num_states: int,
        *,
        basis: jax.Array | None = None,
        noise: bool = False,
    ) -> Modulation:
        """Heads that change nothing yet.

        Args:
          kinds: one or more of "latent", "transition" and "emission".
          width: of the backbone. num_states: of the circuit.
          basis: [R, V] logits, for "emission" alone; different rows, or they never part.
          noise: tell the heads how much of the window is masked.

        Raises:
          ValueError: no or unknown kinds, or a basis without "emission" or the other way round.
        """
        kinds = check_kinds(kinds)
        rank, vocab_size = (0, 0) if basis is None else basis.shape
        if ("emission" in kinds) != (basis is not None):
            raise ValueError(
                f"kinds {', '.join(kinds)} with basis={basis is not None}: 'emission' needs one, others none"
            )
        shapes = head_shapes(kinds, width, num_states, vocab_size, rank=rank, noise=noise)
        heads = {kind: jnp.zeros(shapes[kind], jnp.float32) if kind in kinds else None for kind in KINDS}
        return cls(**heads, basis=basis, width=width, noise=noise)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are there, in the order of `KINDS`."""
        return tuple(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def rank(self) -> int:
        """R, the distributions that emissions are mixed with; 0 without."""
        return 0 if self.basis is None else self.basis.shape[0]

    def check(self, num_states: int, vocab_size: int) -> None:
        """Raises a ValueError, naming both sides, where the heads are not those of such a circuit."""
        if (self.emission is None) != (self.basis is None):
            raise ValueError("the modulation's emission head and basis belong together; one of them is missing")
        kinds = check_kinds(self.kinds)
        shapes = head_shapes(kinds, self.width, num_states, vocab_size, rank=self.rank, noise=self.noise)
        for name, shape in shapes.items():
            array = getattr(self, name)
            if tuple(array.shape) != shape:
                raise ValueError(
                    f"the modulation's {name} has shape {tuple(array.shape)}; {num_states} states, {vocab_size} "
                    f"tokens, width {self.width}{' and the noise level' if self.noise else ''} ask for {shape}"
                )

    def inputs(self, hidden: jax.Array, noise: jax.Array | None) -> jax.Array:
        """What the heads read, [..., T, D(+F)] float32, from hidden states [..., T, D] and masked shares [...]."""
        if hidden.shape[-1] != self.width:
            raise ValueError(
                f"the hidden states have width {hidden.shape[-1]} and the circuit's modulation was made for "
                f"{self.width}: it belongs to another backbone"
            )
        hidden = hidden.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(hidden * hidden, axis=-1, keepdims=True) + 1e-6)
        hidden = hidden * scale * (_REFERENCE_WIDTH / self.width)
        if not self.noise:
            return hidden
        if noise is None:
            raise ValueError("the circuit's modulation is told the masked share of the window; pass noise")
        features = jnp.cos(jnp.pi * jnp.arange(NOISE_FEATURES) * noise.astype(jnp.float32)[..., None])
        features = jnp.broadcast_to(features[..., None, :], (*hidden.shape[:-1], NOISE_FEATURES))
        return jnp.concatenate([hidden, features], axis=-1)


def head_shapes(
    kinds: Sequence[str], width: int, num_states: int, vocab_size: int, *, rank: int = 0, noise: bool = False
) -> dict[str, tuple[int, ...]]:
    """The shapes of a `Modulation`'s arrays by name, for the arrays that these kinds have."""
    inputs = width + (NOISE_FEATURES if noise else 0)
    shapes: dict[str, tuple[int, ...]] = {
        kind: (inputs, rank, num_states) if kind == "emission" else (inputs, num_states) for kind in kinds
    }
    return shapes | ({"basis": (rank, vocab_size)} if "emission" in kinds else {})


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds in the order of `KINDS`; ValueError for none or unknown ones."""
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"modulation is {', '.join(unknown) or 'empty'}; it must name some of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in kinds)


def modulate(
    hmm: HMM, hidden: jax.Array | None, noise: jax.Array | None = None, inside: jax.Array | None = None
) -> Context | None:
    """What the context makes of the circuit in windows, or None for a static circuit.

    Args:
      hmm: the circuit, with or without modulation.
      hidden: [..., T, D], row t is the final-normed hidden state that position t is predicted from.
      noise: [...], the masked share of each window; read only by heads that are told it.
      inside: optional [..., T] bool, positions that exist; the others are left as the static circuit has them.

    Raises:
      ValueError: a modulated circuit without hidden states, or with those of another width or length.
    """
    heads = hmm.modulation
    if heads is None:
        return None
    if hidden is None:
        raise ValueError("this circuit follows the backbone's hidden states (modulation); pass hidden")
    if hidden.shape[-2] != hmm.length:
        raise ValueError(f"hidden states are of {hidden.shape[-2]} positions and the circuit covers {hmm.length}")
    inputs = heads.inputs(hidden, noise)

    def apply(head: jax.Array | None) -> jax.Array | None:
        if head is None:
            return None
        flat = jnp.matmul(inputs, head.reshape(head.shape[0], -1), precision=_PRECISION)
        out = flat.reshape(*inputs.shape[:-1], *head.shape[1:])
        return out if inside is None else jnp.where(inside.reshape(*inside.shape, *(1,) * (head.ndim - 1)), out, 0)

    log_latent, gate, change = (apply(head) for head in (heads.latent, heads.transition, heads.emission))
    if gate is not None:
        gate = gate_potential(hmm, gate)
        log_latent = gate if log_latent is None else log_latent + gate
    if change is None:
        return Context(log_latent)
    # At a tie `maximum` passes half the gradient on, so that heads of zero learn.
    return Context(log_latent, jnp.maximum(change, 0), jax.nn.softmax(heads.basis, axis=-1))


def gate_potential(hmm: HMM, gate: jax.Array) -> jax.Array:
    """The latent potentials [..., T, H] that gates u [..., T, H] on the transitions amount to.

    A_t[z, z'] = A[z, z'] e^{u_t(z')} / n_t(z) with n_t(z) = Σ_z' A[z, z'] e^{u_t(z')} is A with factors of either end
    state alone: e^{u_t} belongs to the state at t, 1 / n_t to the one at t - 1. The gated chain is therefore exactly
    the chain of A with g_t(z) = u_t(z) - log n_{t+1}(z), and -log Σ π e^{u_0} besides at t = 0: one product by A a
    position. Rows of A that do not sum to one keep their sum, so a gate of zero changes nothing.
    """
    rest = jnp.zeros_like(gate[..., :1, :])
    if hmm.transition.ndim == 2:
        # The rows of zeros go through the same product: their result is log 1 up to the same rounding.
        total = logspace.log_matmul(jnp.concatenate([gate, rest], axis=-2), hmm.transition, 1)
        share = total[..., 1:-1, :] - total[..., -1:, :]
    else:
        product = jax.vmap(lambda x, a: logspace.log_matmul(x, a, 1), in_axes=(-2, 0), out_axes=-2)
        following = gate[..., 1:, :]
        total = product(jnp.stack([following, jnp.zeros_like(following)]), hmm.transition)
        share = total[0] - total[1]
    first = logspace.safe_log(hmm.initial)
    start = logspace.logsumexp(jnp.stack([first + gate[..., 0, :], jnp.broadcast_to(first, gate[..., 0, :].shape)]))
    start = jnp.zeros_like(rest).at[..., 0, :].add((start[0] - start[1])[..., None])
    parts = [start, jnp.zeros_like(gate[..., 1:, :])]
    return gate - jnp.concatenate([share, rest], axis=-2) - jnp.concatenate(parts, axis=-2)
