"""What a stored circuit says about the heads by which it follows the context."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from codd_jax.circuits.modulation import Modulation, check_kinds, head_shapes

_PREFIX = "modulation."


@dataclasses.dataclass(frozen=True)
class ModulationInfo:
    """The heads of a modulated circuit: their kinds, the backbone's width, the noise level, the emissions' rank."""

    kinds: tuple[str, ...]
    width: int
    noise: bool = False
    rank: int = 0

    @classmethod
    def of(cls, modulation: Modulation | None) -> Self | None:
        """The same facts of heads in memory; None for none."""
        return modulation and cls(modulation.kinds, modulation.width, modulation.noise, modulation.rank)

    @classmethod
    def read(cls, facts: Mapping[str, Any] | None, path: Path) -> Self | None:
        """From a circuit's description, where None stands for a static circuit; ValueError where it is not readable."""
        if facts is None:
            return None
        try:
            kinds = check_kinds([str(kind) for kind in facts["kinds"]])
            return cls(kinds, int(facts["width"]), bool(facts.get("noise", False)), int(facts.get("rank", 0)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: the description of the circuit's modulation is not readable: {error}") from error

    def shapes(self, num_states: int, vocab_size: int) -> dict[str, tuple[int, ...]]:
        """The stored arrays of such heads by their names in the file, for a circuit of so many states and tokens."""
        shapes = head_shapes(self.kinds, self.width, num_states, vocab_size, rank=self.rank, noise=self.noise)
        return {_PREFIX + name: shape for name, shape in shapes.items()}

    def load(self, read: Callable[[str], np.ndarray]) -> Modulation:
        """The heads from a function that reads an array by its name in the file, in float32."""
        names = [name.removeprefix(_PREFIX) for name in self.shapes(0, 0)]
        arrays = {name: jnp.array(read(_PREFIX + name), jnp.float32) for name in names}
        empty = dict.fromkeys(("latent", "transition", "emission", "basis"))
        return Modulation(**{**empty, **arrays}, width=self.width, noise=self.noise)

    def __str__(self) -> str:
        rank = f" of rank {self.rank}" if self.rank else ""
        told = ", told the noise level" if self.noise else ""
        return f"follows a context of width {self.width} ({', '.join(self.kinds)}{rank}{told})"


def arrays_of(modulation: Modulation | None) -> dict[str, np.ndarray]:
    """The heads' arrays on the host by their names in the file; none for a static circuit."""
    if modulation is None:
        return {}
    info = ModulationInfo.of(modulation)
    names = [name.removeprefix(_PREFIX) for name in info.shapes(0, 0)]
    return {_PREFIX + name: np.asarray(getattr(modulation, name)) for name in names}


def check_finite(array: np.ndarray, name: str) -> None:
    """Raise ValueError for heads that hold NaN or infinite weights."""
    if not np.isfinite(np.sum(array, dtype=np.float64)):
        raise ValueError(f"{name} holds NaN or infinite weights; the file is damaged or its training diverged")
