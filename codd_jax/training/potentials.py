"""What a circuit is trained on: the frozen backbone's hidden states of masked windows, and the head that reads them.

A token's potentials are V numbers and its hidden state D; the frozen head gives the former back from the latter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from codd_jax.backbones import Transformer
from codd_jax.backbones.layers import project


@struct.dataclass
class WindowPotentials:
    """Masked windows and what the backbone makes of them.

    Attributes:
      hidden: [batch, T, D], row t is the final-normed state that position t is predicted from.
      tokens: [batch, T] int32, the clean tokens.
      masked: [batch, T] bool, the hidden ones; a window without any is ignored by conditional objectives.
      noise: [batch] float32, the masked share of each window.
    """

    hidden: jax.Array
    tokens: jax.Array
    masked: jax.Array
    noise: jax.Array

    @classmethod
    def of(cls, hidden: jax.Array, tokens: jax.Array, masked: jax.Array) -> WindowPotentials:
        """Windows whose noise is their masked share."""
        return cls(hidden, tokens, masked, masked.mean(-1, dtype=np.float32))

    def take(self, windows: jax.Array | np.ndarray) -> WindowPotentials:
        """The windows with these numbers [batch]."""
        return jax.tree.map(lambda array: array[windows], self)


@struct.dataclass
class Head:
    """The frozen head alone, so that training on stored states needs nothing else of the backbone.

    Attributes:
      weight: [V, D]. bias: [V] or None. scale: of the logits, static. dtype: what the product is computed in, static.
    """

    weight: jax.Array
    bias: jax.Array | None
    scale: float = struct.field(pytree_node=False, default=1.0)
    dtype: str = struct.field(pytree_node=False, default="float32")

    @classmethod
    def of(cls, backbone: Transformer) -> Head:
        """The backbone's head, its embedding where they are tied; arrays are shared."""
        tied = backbone.head is None
        weight = (backbone.embed if tied else backbone.head).weight[...]
        bias = None if tied or backbone.head.bias is None else backbone.head.bias[...]
        config = backbone.config
        return cls(weight, bias, config.width**-0.5 if config.scale_logits else 1.0, str(backbone.dtype))

    @property
    def width(self) -> int:
        """D."""
        return self.weight.shape[1]

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.weight.shape[0]

    def log_phi(self, hidden: jax.Array) -> jax.Array:
        """Log-potentials [..., V] in float32 of aligned hidden states [..., D]."""
        logits = project(hidden.astype(self.dtype), self.weight.astype(self.dtype), jnp.float32)
        if self.bias is not None:
            logits = logits + self.bias.astype(jnp.float32)
        return jax.nn.log_softmax(logits * self.scale, axis=-1)


def head_log_phi(backbone: Transformer, hidden: jax.Array) -> jax.Array:
    """Log-potentials [batch, T, V] float32 of aligned hidden states [batch, T, D] through the backbone's head."""
    return Head.of(backbone).log_phi(hidden)


def aligned_states(backbone: Transformer, hidden: jax.Array, starts: jax.Array, length: int) -> jax.Array:
    """The states that windows are predicted from.

    Args:
      backbone: says whether the family predicts the next position (Dream).
      hidden: [rows, positions, D] final-normed states.
      starts: [rows, windows] int32.
      length: T.

    Returns:
      [rows, windows, T, D].
    """
    positions = starts[..., None] + jnp.arange(length) - int(backbone.config.shift_logits)
    flat = jnp.maximum(positions, 0).reshape(hidden.shape[0], -1)
    return jnp.take_along_axis(hidden, flat[..., None], axis=1).reshape(*positions.shape, hidden.shape[-1])


def make_encoder(backbone: Transformer, length: int) -> Callable[..., WindowPotentials]:
    """`encode(noisy, clean, masked, lengths, starts)` → `WindowPotentials` of rows · windows windows.

    Arguments are [rows, positions] (lengths [rows], starts [rows, windows] int32); a start below 0 stands for a window
    that is not there, which comes out without a masked token.
    """
    graphdef, params = nnx.split(backbone)
    return functools.partial(_encode, graphdef, length, params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(graphdef, length, params, noisy, clean, masked, lengths, starts) -> WindowPotentials:
    backbone = nnx.merge(graphdef, params)
    there = starts >= 0
    starts = jnp.maximum(starts, 0)
    states = aligned_states(backbone, backbone.encode(noisy, lengths), starts, length)
    flat = (starts[..., None] + jnp.arange(length)).reshape(starts.shape[0], -1)
    cut = lambda x: jnp.take_along_axis(x, flat, axis=1).reshape(-1, length)  # noqa: E731
    hidden = cut(masked) & there.reshape(-1, 1)
    return WindowPotentials.of(states.reshape(-1, length, states.shape[-1]), cut(clean), hidden)


class WindowSource(Protocol):
    """Where a trainer gets its windows from.

    Attributes:
      head: the frozen head. length: T. batch_size: windows of a batch. num_windows: windows of an epoch.
    """

    head: Head
    length: int
    batch_size: int

    def __len__(self) -> int:
        """Windows of an epoch."""
        ...

    def batch(self, step: int) -> WindowPotentials:
        """The batch of a step, a function of its number alone: a run that is resumed sees what it would have seen."""
        ...

    def validation(self) -> Iterator[WindowPotentials]:
        """The held-out windows in batches of `batch_size`, the same every time; the last is filled up with
        windows that have no masked token."""
        ...


class MemoryWindows:
    """A `WindowSource` of windows that memory holds."""

    def __init__(
        self,
        head: Head,
        windows: WindowPotentials,
        validation: WindowPotentials | None = None,
        *,
        batch_size: int = 64,
        seed: int = 0,
    ):
        """Windows without a masked token are left out; ValueError where none is left."""
        usable = np.flatnonzero(np.asarray(windows.masked).any(-1))
        if not usable.size:
            raise ValueError(f"none of {len(windows.tokens)} windows has a masked token; there is nothing to learn")
        self.head = head
        self.batch_size, self.seed = batch_size, seed
        self.windows, self.held_out = windows, validation
        self.length = windows.tokens.shape[1]
        self._usable = usable

    def __len__(self) -> int:
        """Windows of an epoch."""
        return len(self._usable)

    def batch(self, step: int) -> WindowPotentials:
        """The windows of a step; every window comes once an epoch."""
        return self.windows.take(epoch_batch(self._usable, self.seed, step, self.batch_size))

    def validation(self) -> Iterator[WindowPotentials]:
        """The held-out windows in batches."""
        if self.held_out is not None:
            for first in range(0, len(self.held_out.tokens), self.batch_size):
                yield fill_up(
                    jax.tree.map(lambda array, at=first: array[at : at + self.batch_size], self.held_out),
                    self.batch_size,
                )


def epoch_batch(numbers: np.ndarray, seed: int, step: int, batch_size: int) -> np.ndarray:
    """`batch_size` of `numbers` for a step: each epoch is a permutation of its own, and batches run across its end."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = places // len(numbers)
    drawn = [
        np.random.default_rng((seed, int(epoch))).permutation(numbers)[places[epochs == epoch] % len(numbers)]
        for epoch in np.unique(epochs)
    ]
    return np.concatenate(drawn)


def fill_up(windows: WindowPotentials, batch_size: int) -> WindowPotentials:
    """The windows and, up to `batch_size`, copies of the first one without masked tokens."""
    missing = batch_size - len(windows.tokens)
    if missing <= 0:
        return windows
    copies = jax.tree.map(lambda array: jnp.repeat(array[:1], missing, axis=0), windows)
    copies = copies.replace(masked=jnp.zeros_like(copies.masked), noise=jnp.zeros_like(copies.noise))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), windows, copies)
