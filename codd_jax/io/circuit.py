"""Circuits on disk: one door for .jpc files, converted folders and safetensors, and a look at their sizes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from codd_jax.backbones.config import BackboneConfig
from codd_jax.circuits.hmm import HMM, NORMALIZATIONS
from codd_jax.io import hub
from codd_jax.io.arrays import ArrayStore, save_arrays
from codd_jax.io.checkpoint import PARAMS, parts
from codd_jax.io.jpc_chain import open_chain
from codd_jax.io.mapped import map_tensor
from codd_jax.io.modulation import ModulationInfo, arrays_of, check_finite
from codd_jax.io.tensors import SafetensorsFolder, write_safetensors
from codd_jax.io.workspace import read_marker, write_json, write_marker
from codd_jax.jsonfile import read_json

NAMES = ("initial", "transition", "emission")
_WEIGHTS, _ABOUT = "circuit.safetensors", "circuit.json"
_PATTERNS = ("*.jpc", "codd.json", "codd_config.json", "circuit.*", "params/**", "circuit/**")


@dataclasses.dataclass(frozen=True)
class CircuitInfo:
    """What a circuit covers: window length, states, vocabulary; how it was trained; the mask id it was trained for;
    and which heads it has, if it follows the context."""

    length: int
    num_states: int
    vocab_size: int
    normalization: str = "global"
    mask_id: int | None = None
    format: str = "memory"
    modulation: ModulationInfo | None = None

    @classmethod
    def of(cls, hmm: HMM) -> Self:
        """The same facts of a circuit in memory."""
        modulation = ModulationInfo.of(hmm.modulation)
        return cls(hmm.length, hmm.num_states, hmm.vocab_size, hmm.normalization, modulation=modulation)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """The stored arrays by name, each with the shapes that it may have."""
        length, states, vocab = self.length, self.num_states, self.vocab_size
        heads = {} if self.modulation is None else self.modulation.shapes(states, vocab)
        return {
            "initial": ((states,),),
            "transition": ((states, states), (length - 1, states, states)),
            "emission": ((states, vocab), (length, states, vocab)),
            **{name: (shape,) for name, shape in heads.items()},
        }

    def check_fit(self, config: BackboneConfig) -> None:
        """Raises ValueError, naming both numbers, where the circuit was made for another backbone."""
        if self.vocab_size != config.vocab_size:
            raise ValueError(
                f"the circuit is over {self.vocab_size} tokens and the {config.family} backbone over "
                f"{config.vocab_size}: it was trained for another backbone; published circuits say in their names "
                "which one they are for"
            )
        if self.mask_id is not None and self.mask_id != config.mask_id:
            raise ValueError(
                f"the circuit was trained with mask id {self.mask_id} and the backbone's is {config.mask_id}; "
                "take the circuit that belongs to this backbone"
            )
        if self.modulation is not None and self.modulation.width != config.width:
            raise ValueError(
                f"the circuit's modulation reads hidden states of width {self.modulation.width} and the "
                f"{config.family} backbone's have {config.width}: it was trained for another backbone"
            )


def describe(source: str | Path, **access: Any) -> CircuitInfo:
    """The sizes of a circuit on disk or on the hub; reads no parameters and touches no device.

    Args and errors as `load_circuit`.
    """
    return _open(source, **access)[0]


def load_circuit(source: str | Path, *, dtype: Any = None, **access: Any) -> HMM:
    """Load a circuit; rows whose sum is off by more than 1e-3 are renormalised, with a warning.

    Args:
      source: a hub id, a .jpc file, a folder with model.jpc, pc_model.jpc or circuit.safetensors, a converted folder or
        a bundle.
      dtype: of the emissions; None keeps what is stored.
      **access: revision, token, cache_dir, local_files_only, as `io.hub.resolve`.

    Raises:
      ValueError: files that cannot be read or whose parts do not fit.
      FileNotFoundError, PermissionError, ConnectionError: something is not there or cannot be had.
    """
    info, read = _open(source, **access)
    # Copies, so that the arrays outlive the files that they are read from.
    initial, transition, emission = (np.array(read(name)) for name in NAMES)
    if dtype is not None:
        emission = emission.astype(jnp.dtype(dtype))
    facts = {"length": info.length, "normalization": info.normalization}
    hmm = HMM.from_probabilities(initial, transition, emission, **facts)
    return hmm if info.modulation is None else hmm.with_modulation(info.modulation.load(read))


def read_arrays(source: str | Path, **access: Any) -> tuple[CircuitInfo, dict[str, np.ndarray]]:
    """The sizes of a circuit and its probabilities as stored, on the host, without its modulation if it has one."""
    info, read = _open(source, **access)
    return info, {name: read(name) for name in NAMES}


def save_circuit(folder: str | Path, hmm: HMM, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a circuit as circuit.safetensors and circuit.json; `metadata` (mask_id, say) goes into the latter."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(getattr(hmm, name)) for name in NAMES} | arrays_of(hmm.modulation)
    (folder / _ABOUT).unlink(missing_ok=True)  # written last: the pair is complete or not recognised
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    write_safetensors(folder / _WEIGHTS, specs, arrays.__getitem__)
    write_json(folder / _ABOUT, {**(metadata or {}), **_facts(CircuitInfo.of(hmm))})


def write_circuit(
    folder: str | Path, source: str | Path, *, about: Mapping[str, Any] | None = None, progress: bool = True
) -> CircuitInfo:
    """Write a circuit as a converted folder (Orbax), its numbers as they are stored; continues an interrupted call."""
    info, read = _open(source)
    arrays = {name: read(name) for name in info.shapes()}
    for name, array in arrays.items():
        (check_probabilities if name in NAMES else check_finite)(array, f"{source}: {name}")
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    save_arrays(Path(folder) / PARAMS, specs, arrays.__getitem__, description="circuit", progress=progress)
    write_marker(folder, "circuit", **_facts(info), **(about or {}))
    return info


def check_probabilities(array: np.ndarray, name: str) -> None:
    """Raise ValueError for entries that are no probabilities; looks at some rows at a time."""
    rows = array.reshape(-1, array.shape[-1])
    step = max(1, 2**24 // rows.shape[1])
    for first in range(0, len(rows), step):
        part = rows[first : first + step].astype(np.float32)
        low = part.min()
        if not np.isfinite(low) or not np.isfinite(part.sum()):
            raise ValueError(f"{name} holds NaN or infinite entries; the file is damaged or its training diverged")
        if low < 0:
            raise ValueError(f"{name} holds a negative entry ({low:.3g}); probabilities are expected, not logarithms")


def _facts(info: CircuitInfo) -> dict[str, Any]:
    """What codd.json and circuit.json say of a circuit."""
    facts = dataclasses.asdict(info)
    del facts["format"]
    return {key: value for key, value in facts.items() if value is not None}


def _open(source: str | Path, **access: Any) -> tuple[CircuitInfo, Callable[[str], np.ndarray]]:
    """The sizes of a circuit, and a function that reads one of its arrays."""
    found = hub.resolve(source, allow_patterns=_PATTERNS, **access)
    path = parts(found)[1] if found.is_dir() or found.suffix == ".jpc" else None
    if path is None:
        raise ValueError(
            f"{source} holds no circuit: neither a .jpc file nor {_WEIGHTS} with {_ABOUT} nor a converted circuit"
        )
    if path.suffix == ".jpc" and path.is_file():
        return _open_jpc(path)
    marker = read_marker(path)
    if marker is not None:
        store = ArrayStore(path / PARAMS)
        return _checked(marker, store, path, "orbax"), store.read
    tensors = SafetensorsFolder(path / _WEIGHTS)
    info = _checked(read_json(path / _ABOUT), tensors, path, "safetensors")
    return info, lambda name: map_tensor(path / _WEIGHTS, name)


def _open_jpc(path: Path) -> tuple[CircuitInfo, Callable[[str], np.ndarray]]:
    chain = open_chain(path)
    settings = path.with_name("codd_config.json")
    mask_id = read_json(settings).get("mask_id") if settings.is_file() else None
    info = CircuitInfo(chain.length, chain.num_states, chain.vocab_size, chain.normalization, mask_id, "jpc")
    return info, lambda name: getattr(chain, name)()


def _checked(facts: Mapping[str, Any], stored: ArrayStore | SafetensorsFolder, path: Path, format: str) -> CircuitInfo:
    """A CircuitInfo from a JSON description, if it agrees with the arrays that are there."""
    try:
        sizes = [int(facts[key]) for key in ("length", "num_states", "vocab_size")]
        normalization, mask_id = facts.get("normalization", "global"), facts.get("mask_id")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the description of the circuit lacks a readable {error}") from error
    modulation = ModulationInfo.read(facts.get("modulation"), path)
    info = CircuitInfo(*sizes, normalization, mask_id, format, modulation)
    allowed = info.shapes()
    if missing := sorted(set(allowed) - set(stored.names())):
        where = path / (PARAMS if format == "orbax" else _WEIGHTS)
        raise ValueError(f"{where} lacks {', '.join(missing)}; a circuit needs {', '.join(allowed)}")
    shapes = {name: tuple(stored.shape(name)) for name in allowed}
    wrong = [f"{name} {shapes[name]}" for name in allowed if shapes[name] not in allowed[name]]
    if wrong or normalization not in NORMALIZATIONS:
        raise ValueError(
            f"{path}: {', '.join(wrong) or f'normalization {normalization!r}'} does not fit a circuit of {info.length} "
            f"positions, {info.num_states} states and {info.vocab_size} tokens"
            f"{'' if modulation is None else f' that {modulation}'}; the files are not of one circuit"
        )
    return info
