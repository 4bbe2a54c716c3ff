"""What decoding asks of a model: logits of chosen positions. A Transformer, a table or a toy all fit."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

from codd_jax.backbones.cache import encode_again, encode_and_keep
from codd_jax.decoding.strategy import Numbers, Strategy


class Denoiser(Protocol):
    """A hashable callable: programs are compiled per denoiser, and fed its `params`."""

    def __call__(
        self, params: Any, tokens: jax.Array, lengths: jax.Array, positions: jax.Array, call: jax.Array
    ) -> jax.Array:
        """Float32 logits [B, P, V] of the tokens at `positions` [B, P], given `tokens` [B, L] and `lengths` [B].

        `call` [B] int32 is the planned step's number in each row. Positions are always inside the row of L.
        """


@runtime_checkable
class TwoPartDenoiser(Protocol):
    """A denoiser whose expensive part is computed once a step, and whose head is asked again and again."""

    def encode(self, params: Any, tokens: jax.Array, lengths: jax.Array, call: jax.Array) -> Any:
        """Features with a leading batch axis, whatever `head` needs."""

    def head(self, params: Any, features: Any, positions: jax.Array) -> jax.Array:
        """Float32 logits [B, P, V] at `positions` [B, P]."""


@runtime_checkable
class HiddenDenoiser(Protocol):
    """A `TwoPartDenoiser` that shows the hidden states behind its logits, which modulated circuits follow."""

    def hidden(self, params: Any, features: Any, positions: jax.Array) -> jax.Array:
        """States [B, P, D], row p the one that the token at `positions` [B, P] is predicted from."""


@dataclasses.dataclass(frozen=True)
class BackboneDenoiser:
    """A `Transformer` as a denoiser: `graphdef, params = nnx.split(backbone)`."""

    graphdef: nnx.GraphDef

    def encode(self, params, tokens, lengths, call):
        """Final-normed hidden states [B, L, D]."""
        del call
        return nnx.merge(self.graphdef, params).encode(tokens, lengths)

    def head(self, params, features, positions):
        """Logits [B, P, V] from hidden states, aligned to the token they predict."""
        return nnx.merge(self.graphdef, params).logits(features, positions)

    def hidden(self, params, features, positions):
        """The final-normed states [B, P, D] that the tokens at `positions` are predicted from."""
        source = jnp.maximum(positions - self.lookback(params), 0)
        return jnp.take_along_axis(features, source[..., None], axis=1, mode="clip")

    def encode_and_keep(self, params, tokens, lengths, call):
        """Hidden states [B, L, D], and every block's keys and values; see `cache.CachedDenoiser`."""
        del call
        return encode_and_keep(nnx.merge(self.graphdef, params), tokens, lengths)

    def encode_again(self, params, kept, tokens, lengths, positions):
        """Hidden states [B, P, D] at `positions`, with kept keys and values elsewhere."""
        return encode_again(nnx.merge(self.graphdef, params), kept, tokens, lengths, positions)

    def lookback(self, params):
        """1 where a position is predicted from the hidden state before it (Dream)."""
        return int(nnx.merge(self.graphdef, params).config.shift_logits)

    def __call__(self, params, tokens, lengths, positions, call):
        """Logits [B, P, V]."""
        return self.head(params, self.encode(params, tokens, lengths, call), positions)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Logits of one step's canvas at any positions, guidance included. Build it with `read_canvas`, inside a trace."""

    denoiser: Any
    params: Any
    features: Any
    call: jax.Array
    cfg_scale: jax.Array | None
    two_part: bool

    def __call__(self, positions: jax.Array) -> jax.Array:
        """Float32 logits [B, P, V] at absolute `positions` [B, P]."""
        twice = positions if self.cfg_scale is None else jnp.concatenate([positions, positions])
        if self.two_part:
            logits = self.denoiser.head(self.params, self.features, twice)
        else:
            tokens, lengths = self.features
            logits = self.denoiser(self.params, tokens, lengths, twice, self.call)
        logits = logits.astype(jnp.float32)
        if self.cfg_scale is None:
            return logits
        conditional, unconditional = jnp.split(logits, 2)
        return unconditional + (self.cfg_scale + 1.0) * (conditional - unconditional)

    def hidden(self, positions: jax.Array) -> jax.Array:
        """Hidden states [B, P, D] behind the logits at `positions` [B, P]; with guidance the conditional rows' own.

        ValueError for a denoiser that has none.
        """
        check_hidden(self.denoiser)
        features = jax.tree.map(lambda x: x[: positions.shape[0]], self.features)
        return self.denoiser.hidden(self.params, features, positions)


def check_hidden(denoiser: Any) -> None:
    """Raises a ValueError where a circuit that follows the context would have no hidden states to follow."""
    if not (isinstance(denoiser, HiddenDenoiser) and isinstance(denoiser, TwoPartDenoiser)):
        raise ValueError(
            f"the circuit follows the backbone's hidden states (modulation), which {type(denoiser).__name__} does not "
            "show; see denoiser.HiddenDenoiser, or take the static circuit: hmm.with_modulation(None)"
        )


def read_canvas(
    denoiser: Any, params: Any, tokens: jax.Array, given: jax.Array, lengths: jax.Array, call: jax.Array,
    strategy: Strategy, numbers: Numbers,
) -> Reader:  # fmt: skip
    """Runs the backbone on `tokens` [B, L], doubled with the prompt masked where guidance is on.

    Guidance is un + (s + 1)(c - un), the unconditional row hiding every position `given` from the start.
    """
    tokens, lengths = step_rows(tokens, given, lengths, strategy)
    if not isinstance(denoiser, TwoPartDenoiser):
        cfg_scale = numbers.cfg_scale if strategy.guided else None
        return Reader(denoiser, params, (tokens, lengths), call, cfg_scale, two_part=False)
    return read_features(denoiser, params, denoiser.encode(params, tokens, lengths, call), call, strategy, numbers)


def step_rows(
    tokens: jax.Array, given: jax.Array, lengths: jax.Array, strategy: Strategy
) -> tuple[jax.Array, jax.Array]:
    """Tokens and lengths of the rows that the backbone runs on: B, or 2B where guidance is on."""
    if not strategy.guided:
        return tokens, lengths
    hidden = jnp.where(given, strategy.mask_id, tokens)
    return jnp.concatenate([tokens, hidden]), jnp.concatenate([lengths, lengths])


def read_features(
    denoiser: Any, params: Any, features: Any, call: jax.Array, strategy: Strategy, numbers: Numbers
) -> Reader:
    """Logits out of features that a `TwoPartDenoiser` computed of `step_rows`."""
    return Reader(denoiser, params, features, call, numbers.cfg_scale if strategy.guided else None, two_part=True)
