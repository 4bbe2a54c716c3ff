"""Named tensors on disk: lazy reading of one or many safetensors files, and a writer that holds one at a time."""

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from codd_jax.io.whole_file import writing
from codd_jax.jsonfile import read_json

# safetensors' dtype names and NumPy's.
DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U64": np.dtype(np.uint64), "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}  # fmt: skip
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"


class TensorSource(Protocol):
    """Anything that hands out named tensors one by one: a checkpoint folder, or one with an adapter merged in.

    A source may also have `read_slice(name, index)`, which reads only the part that a tuple of slices selects (sharded
    loading then reads no more than each device needs), `place(name, sharding)`, which puts the tensor on devices, or
    `in_dtype(dtype)`, the source for a reader that will store this dtype.
    """

    def names(self) -> set[str]:
        """All tensor names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it."""

    def dtype(self, name: str) -> np.dtype:
        """The stored dtype (ml_dtypes' bfloat16 included)."""

    def read(self, name: str) -> np.ndarray:
        """The tensor itself."""

    def origin(self, name: str) -> str:
        """Where the tensor comes from, for messages."""


class SafetensorsFolder:
    """A `TensorSource` over `model.safetensors`, over shards with their index, or over one named file.

    Only headers are read until `read` is called. Raises FileNotFoundError for absent files and shards, ValueError for
    truncated or foreign files, for an index that names absent tensors, and for tensors stored twice.
    """

    def __init__(self, source: str | pathlib.Path):
        self.path = pathlib.Path(source)
        index = self.path / INDEX
        listed = _read_index(index) if index.is_file() else None
        files = [self.path / name for name in sorted(set(listed.values()))] if listed else _find_files(self.path)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.path} lacks {len(missing)} of {len(files)} shards: {_some(missing)}; download them again"
            )
        self._file_of: dict[str, pathlib.Path] = {}
        self._open = {file: _open(file) for file in files}
        for file, handle in self._open.items():
            for name in handle.keys():  # noqa: SIM118 - the handle is no mapping
                if name in self._file_of:
                    first = self._file_of[name].name
                    raise ValueError(
                        f"{self.path}: tensor {name!r} is stored twice, in {first} and in {file.name}; "
                        "remove the file that does not belong to this checkpoint"
                    )
                self._file_of[name] = file
        wrong = [name for name, file in (listed or {}).items() if self._file_of.get(name) != self.path / file]
        if wrong:
            raise ValueError(
                f"{index} names {len(wrong)} tensors that its shards do not hold there: {_some(wrong)}; "
                "index and shards are of different checkpoints or versions: download them again together"
            )

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> np.dtype:
        """The stored dtype; ValueError for one that NumPy and ml_dtypes do not have."""
        found = self._slice(name).get_dtype()
        if found not in DTYPES:
            raise ValueError(f"{self.origin(name)}: tensor {name!r} has dtype {found}, which is not supported")
        return DTYPES[found]

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, as a fresh array in the stored dtype."""
        return self.read_slice(name, ())

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part of the tensor that a tuple of slices selects; only its bytes are read."""
        part = self._slice(name)
        try:
            return part[index] if index else self._open[self._file_of[name]].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.origin(name)}: tensor {name!r} cannot be read ({error})") from error

    def origin(self, name: str) -> str:
        """The file that holds the tensor."""
        return str(self._file_of.get(name, self.path))

    def _slice(self, name: str):
        if name not in self._file_of:
            raise KeyError(f"{self.path} holds no tensor named {name!r}")
        return self._open[self._file_of[name]].get_slice(name)


def write_safetensors(
    path: pathlib.Path,
    specs: Mapping[str, tuple[np.dtype, Sequence[int]]],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file tensor by tensor; `read(name)` is called once each, in order, and then forgotten.

    The file appears under its name only when complete. OSError (a full disk, say) names the file and removes the rest.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, (dtype, shape) in specs.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data to 8 bytes
    with writing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, (dtype, shape) in specs.items():
            array = np.asarray(read(name))
            if array.dtype != dtype or array.shape != tuple(shape):
                raise ValueError(f"{name}: got {array.dtype}{array.shape}, announced {dtype}{tuple(shape)}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _read_index(index: pathlib.Path) -> dict[str, str]:
    """The index's weight_map, tensor name → file name."""
    try:
        listed = read_json(index)["weight_map"]
        names = set(listed.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a readable index with a weight_map ({error!r}); download it again") from error
    strange = [str(name) for name in names if not isinstance(name, str) or pathlib.PurePath(name).name != name]
    if strange or not names:
        raise ValueError(f"{index} must name files beside itself; it names {_some(strange) or 'none'}")
    return listed


def _find_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files to read where no index lists them, or FileNotFoundError with the way out."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist")
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    shards = sorted(path.glob("model-*-of-*.safetensors"))
    if shards:
        total = shards[0].stem.rpartition("-of-")[2]
        count = int(total) if total.isdigit() else len(shards)
        return [path / f"model-{number:05d}-of-{total}.safetensors" for number in range(1, count + 1)]
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickled:
        raise FileNotFoundError(
            f"{path} holds weights only as PyTorch pickles ({_some(pickled)}), which can run code and are not read; "
            "save it again with save_pretrained(..., safe_serialization=True), or take a revision with safetensors"
        )
    raise FileNotFoundError(f"{path} holds neither model.safetensors nor {INDEX}; is it a backbone folder?")


def _open(file: pathlib.Path):
    """An open safetensors handle, or ValueError saying what the file is instead."""
    try:
        return safe_open(str(file), framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        with open(file, "rb") as stream:
            start = stream.read(64)
        hint = "it is truncated or not a safetensors file: download it again"
        if start.startswith(b"version https://git-lfs"):
            hint = "it is a Git LFS pointer, not the data: run `git lfs pull` in its folder"
        elif not start:
            hint = "it is empty: download it again"
        raise ValueError(f"{file} cannot be read ({error}); {hint}") from error


def _some(names: Sequence[str], limit: int = 8) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(sorted(names)[:limit]) + rest
