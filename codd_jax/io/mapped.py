"""Tensors as views of the mapped safetensors file: looked at and copied to elsewhere without a copy on the way."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np

from codd_jax.io.tensors import DTYPES, SafetensorsFolder, TensorSource


def map_tensor(path: str | os.PathLike, name: str) -> np.ndarray:
    """One tensor of a safetensors file as a read-only view of the file.

    Raises:
      ValueError: a header that does not fit the file, or no tensor of that name.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > os.path.getsize(path):
            raise ValueError(f"{path} is truncated or not a safetensors file: download it again")
        try:
            entry = json.loads(file.read(size))[name]
            dtype, shape, (begin, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} holds no readable tensor {name!r} ({error!r})") from error
    if end - begin != math.prod(shape) * dtype.itemsize or 8 + size + end > os.path.getsize(path):
        raise ValueError(f"{path}: tensor {name!r} of shape {shape} does not fit its {end - begin} bytes")
    if end == begin:
        return np.zeros(shape, dtype)
    data = np.memmap(path, np.uint8, mode="r", offset=8 + size + begin, shape=(end - begin,))
    return np.asarray(data).view(dtype).reshape(shape)


def view(source: TensorSource, name: str) -> np.ndarray:
    """A tensor of any source, without copying it where the source can do that."""
    if isinstance(source, SafetensorsFolder):
        return map_tensor(Path(source.origin(name)), name)
    return source.view(name) if hasattr(source, "view") else source.read(name)
