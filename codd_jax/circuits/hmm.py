"""The circuit's parameters as one pytree: a hidden Markov model over a window of tokens (CoDD, section 4.2).

Everything else in this room is a pure function of this struct: it can be jitted, vmapped, sharded and differentiated.
"""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from codd_jax.circuits.modulation import Modulation

Normalization = Literal["global", "local"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
ROW_TOLERANCE = 1e-3


@flax.struct.dataclass
class HMM:
    """A hidden Markov model over `length` tokens; all parameters are probabilities.

    Attributes:
      initial: [H], p(z_0).
      transition: [H, H] tied, or [length-1, H, H]; `transition[(t,) i, j]` = p(z_{t+1}=j | z_t=i).
      emission: [H, V] tied, or [length, H, V]; `emission[(t,) i, v]` = p(x_t=v | z_t=i). float32 or bfloat16.
      length: tokens in a window, static.
      normalization: "global" or "local", how the circuit was trained against soft evidence, static.
      modulation: heads that make the circuit follow the backbone's hidden states, or None for a static circuit.
    """

    initial: jax.Array
    transition: jax.Array
    emission: jax.Array
    length: int = flax.struct.field(pytree_node=False)
    normalization: str = flax.struct.field(pytree_node=False, default="global")
    modulation: Modulation | None = None

    @property
    def num_states(self) -> int:
        """H, the number of latent states."""
        return self.emission.shape[-2]

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        return self.emission.shape[-1]

    @property
    def homogeneous(self) -> bool:
        """Whether transition and emission are tied over the positions."""
        return self.transition.ndim == 2 and self.emission.ndim == 2

    @classmethod
    def from_probabilities(cls, initial, transition, emission, length: int, normalization: str = "global") -> HMM:
        """An HMM of the given probabilities, kept bit for bit unless a row sum is off by more than 1e-3.

        Args:
          initial: [H]; transition: [H, H] or [length-1, H, H]; emission: [H, V] or [length, H, V], NumPy or JAX.
          length: tokens in a window.
          normalization: "global" or "local".

        Raises:
          ValueError: shapes that do not fit each other, negative or non-finite entries, or a row that sums to zero.
        """
        arrays = [_as_float(array) for array in (initial, transition, emission)]
        _check_shapes(*arrays, length, normalization)
        names = ("initial", "transition", "emission")
        arrays = [_renormalise(name, array) for name, array in zip(names, arrays, strict=True)]
        return cls(*arrays, length=length, normalization=normalization)

    @classmethod
    def from_logits(cls, initial, transition, emission, length: int, normalization: str = "global") -> HMM:
        """An HMM whose rows are the softmax of unnormalised log-parameters, shaped as in `from_probabilities`.

        Differentiable: the gradient of the conditional log-likelihood by these logits is `F⁺ − F⁻` (see
        `learning.conditional_counts`) minus the row's distribution times the row sum of that.
        """
        logits = [jnp.asarray(array) for array in (initial, transition, emission)]
        _check_shapes(*logits, length, normalization)
        return cls(*(jax.nn.softmax(array, axis=-1) for array in logits), length=length, normalization=normalization)

    @classmethod
    def random(
        cls,
        key: jax.Array,
        length: int,
        num_states: int,
        vocab_size: int,
        *,
        tied: bool = True,
        scale: float = 1.0,
        normalization: str = "global",
    ) -> HMM:
        """An HMM of softmax-normal rows with standard deviation `scale` in log space; every entry is positive."""
        keys = jax.random.split(key, 3)
        lead_a, lead_e = ((), ()) if tied else ((length - 1,), (length,))
        shapes = ((num_states,), (*lead_a, num_states, num_states), (*lead_e, num_states, vocab_size))
        logits = [scale * jax.random.normal(k, shape, jnp.float32) for k, shape in zip(keys, shapes, strict=True)]
        return cls.from_logits(*logits, length=length, normalization=normalization)

    def with_modulation(self, modulation: Modulation | None) -> HMM:
        """The circuit with these heads, or without any; ValueError where they are not of its states and tokens."""
        if modulation is not None:
            modulation.check(self.num_states, self.vocab_size)
        return self.replace(modulation=modulation)

    def validate(self) -> HMM:
        """Returns self after checking shapes and that every row is a distribution within 1e-3; else a ValueError."""
        arrays = (self.initial, self.transition, self.emission)
        _check_shapes(*arrays, self.length, self.normalization)
        if self.modulation is not None:
            self.modulation.check(self.num_states, self.vocab_size)
        for name, array in zip(("initial", "transition", "emission"), arrays, strict=True):
            worst = _worst_row(name, array)
            if worst > _tolerance(array):
                raise ValueError(
                    f"{name}: a row sums to 1 ± {worst:.3g}, more than {_tolerance(array):.3g}; "
                    "HMM.from_probabilities renormalises such rows"
                )
        return self


def _as_float(array) -> jax.Array:
    """`array` on the device as float32, or as it is where it is a narrower or wider float already."""
    array = jnp.asarray(array)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.float32)


def _check_shapes(initial, transition, emission, length: int, normalization: str) -> None:
    """Raises a ValueError naming both sides where the three arrays and `length` do not fit."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is {normalization!r}; it must be one of {', '.join(NORMALIZATIONS)}")
    if not isinstance(length, int | np.integer) or length < 1:
        raise ValueError(f"length is {length!r}; a circuit covers at least one position")
    if initial.ndim != 1:
        raise ValueError(f"initial has shape {initial.shape}; expected [H]")
    states = initial.shape[0]
    allowed = ((states, states), (length - 1, states, states))
    if transition.shape not in allowed:
        raise ValueError(
            f"transition has shape {transition.shape}; initial has {states} states and length is {length}, "
            f"so it must be {allowed[0]} (tied) or {allowed[1]}"
        )
    if emission.ndim not in (2, 3) or emission.shape[:-1] not in ((states,), (length, states)):
        raise ValueError(
            f"emission has shape {emission.shape}; initial has {states} states and length is {length}, "
            f"so it must be ({states}, V) (tied) or ({length}, {states}, V)"
        )
    if states == 0 or emission.shape[-1] == 0:
        raise ValueError(f"a circuit needs states and tokens; got {states} states, {emission.shape[-1]} tokens")


def _tolerance(array) -> float:
    """How far a row sum may be off: 1e-3, or the rounding of a narrower type."""
    return max(ROW_TOLERANCE, float(jnp.finfo(array.dtype).eps))


def _worst_row(name: str, array) -> float:
    """The largest |row sum − 1| of a concrete array, after checking that entries are finite and not negative."""
    if array.size == 0:
        return 0.0
    sums = jnp.sum(array, axis=-1, dtype=jnp.float32)
    low, worst = (float(x) for x in jax.device_get((jnp.min(array), jnp.max(jnp.abs(sums - 1.0)))))
    if not np.isfinite(worst) or not np.isfinite(low):
        raise ValueError(f"{name} holds NaN or infinite entries; probabilities are between 0 and 1")
    if low < 0:
        raise ValueError(f"{name} holds a negative entry ({low:.3g}); use HMM.from_logits for log-parameters")
    return worst


def _renormalise(name: str, array: jax.Array) -> jax.Array:
    """`array` with rows that are off by more than the tolerance divided by their sum, with a warning naming them."""
    if isinstance(array, jax.core.Tracer) or _worst_row(name, array) <= _tolerance(array):
        return array
    sums = jnp.sum(array, axis=-1, dtype=jnp.float32, keepdims=True)
    off = jnp.abs(sums - 1.0) > _tolerance(array)
    zero = int(jnp.sum(sums == 0))
    if zero:
        raise ValueError(f"{name}: {zero} of {sums.size} rows sum to zero; a state without successors has no meaning")
    warnings.warn(
        f"{name}: {int(jnp.sum(off))} of {sums.size} rows sum to 1 ± more than {_tolerance(array):.3g} "
        f"(worst {float(jnp.max(jnp.abs(sums - 1))):.3g}); they were renormalised",
        stacklevel=3,
    )
    return jnp.where(off, array / sums.astype(array.dtype), array)
