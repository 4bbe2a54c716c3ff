"""What is settled before a model's weights are read: types, decoding defaults, tokenizer, and whether parts fit."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from codd_jax.backbones import BackboneConfig
from codd_jax.circuits import HMM
from codd_jax.decoding.config import DecodeConfig
from codd_jax.distributed import place
from codd_jax.io import checkpoint
from codd_jax.io import circuit as circuit_io
from codd_jax.io.circuit import CircuitInfo
from codd_jax.io.workspace import MARKER
from codd_jax.sharding import circuit_sharding
from codd_jax.tokenizer import TOKENIZER_FILES, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def floating(name: str, value: Any) -> jnp.dtype:
    """The dtype; ValueError for what names none, or one that is not of floating-point numbers."""
    try:
        dtype = jnp.dtype(value)
        known = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"{name} must be a floating type such as 'bfloat16' or 'float32', not {value!r}")
    return dtype


def default_config(circuit_length: int | None) -> DecodeConfig:
    """`DecodeConfig()`, with blocks that a short circuit's window holds."""
    config = DecodeConfig()
    if circuit_length is None or circuit_length >= config.block_length:
        return config
    blocks = -(-config.gen_length // circuit_length)
    return dataclasses.replace(config, block_length=circuit_length, steps=max(config.steps, blocks))


def stored_defaults(folder: pathlib.Path) -> DecodeConfig | None:
    """The decoding defaults that a folder holds, None where it holds none.

    Raises:
      ValueError: an unknown setting or a bad value, naming the file and the way out.
    """
    try:
        stored = checkpoint.decode_defaults(folder)
        unknown = sorted(set(stored) - {field.name for field in dataclasses.fields(DecodeConfig)})
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no setting of DecodeConfig")
        return DecodeConfig(**stored) if stored else None
    except (TypeError, ValueError) as error:
        raise _unusable(folder, error) from error


def check_defaults(
    defaults: DecodeConfig, config: BackboneConfig, circuit: CircuitInfo | None, folder: pathlib.Path
) -> None:
    """Raises ValueError, naming the file and the way out, where stored defaults do not fit backbone and circuit."""
    try:
        check_decoding(defaults, config, circuit)
    except ValueError as error:
        raise _unusable(folder, error) from error


def check_decoding(decode: DecodeConfig, config: BackboneConfig, circuit: CircuitInfo | None) -> None:
    """Raises ValueError where a decoding configuration does not fit backbone and circuit; naming both numbers."""
    coupled = circuit is not None and decode.coupling != "none"
    decode.validate_against(
        vocab_size=config.vocab_size,
        mask_id=config.mask_id,
        circuit_length=circuit.length if coupled else None,
        circuit_vocab_size=circuit.vocab_size if coupled else None,
    )


def load_circuit(source: str | pathlib.Path, *, dtype: Any, mesh: jax.sharding.Mesh | None, **access: Any) -> HMM:
    """A circuit with its arrays on the devices of the mesh, if there is one; access as `io.hub.resolve`."""
    hmm = circuit_io.load_circuit(source, dtype=dtype, **access)
    return hmm if mesh is None else place(hmm, circuit_sharding(hmm, mesh))


def optional_tokenizer(folder: pathlib.Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer; None, with a warning, where it holds none of a tokenizer's files."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        warnings.warn(
            f"{folder} holds no tokenizer; the model takes and gives token ids. Copy tokenizer.json and "
            "tokenizer_config.json of the original checkpoint there for text",
            stacklevel=3,
        )
        return None
    return load_tokenizer(folder)


def _unusable(folder: pathlib.Path, error: Exception) -> ValueError:
    file = folder / (MARKER if (folder / MARKER).is_file() else "codd_config.json")
    return ValueError(
        f"the decoding defaults in {file} cannot be used: {error}. Correct them in the file, or pass defaults= to "
        "from_pretrained"
    )
