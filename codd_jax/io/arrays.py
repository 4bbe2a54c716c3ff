"""Named arrays in an Orbax checkpoint: written one batch at a time, resumable, and restored straight into shardings."""

from __future__ import annotations

import errno
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

Spec = tuple[np.dtype, tuple[int, ...]]

# Small arrays share a save, which costs some 30 ms; a batch is what a save holds, and what an interruption loses.
BATCH_BYTES = 16 * 2**20
# Chunks let a sharded restore read little more than its share.
_CHUNK_BYTES = 64 * 2**20


def save_arrays(
    path: str | Path,
    specs: Mapping[str, Spec],
    read: Callable[[str], np.ndarray],
    *,
    description: str = "converting",
    progress: bool = True,
) -> None:
    """Write arrays to the Orbax checkpoint `path`, reading each once; continues where an interrupted call stopped.

    Besides one batch (16 MiB, or one larger array) nothing is held. Until the last array is written only
    `<path>.partial_save` exists. A call continues such a folder if the specs are the same: the caller makes sure of it.

    Args:
      path: the checkpoint's folder; nothing is done where it is complete already.
      specs: dtype and shape of every array, in the order of writing.
      read: gives the array of a name; called in order, not for arrays that were written before.

    Raises:
      OSError: the disk is full (what was written stays, the same call continues), or another error of the file system.
      ValueError: `path` holds other arrays than `specs` says.
    """
    path = Path(path).absolute()
    partial, closing = path.with_name(path.name + ".partial_save"), path.with_name(path.name + ".closing")
    if not path.is_dir():
        if closing.exists():  # killed while the batches were being merged: what is there cannot be told apart
            shutil.rmtree(partial, ignore_errors=True)
        batches = _batches(specs)
        done = len(list(partial.glob("*.pending*")))
        size = sum(_size(spec) for spec in specs.values())
        with _saving(path), tqdm(total=size, desc=description, unit="B", unit_scale=True, disable=not progress) as bar:
            for number, names in enumerate(batches):
                if number >= done:
                    ocp.partial.save(path, {name: _checked(read(name), specs[name], name) for name in names})
                bar.update(sum(_size(specs[name]) for name in names))
            closing.touch()
            ocp.partial.finalize(path)
    closing.unlink(missing_ok=True)
    stored = ArrayStore(path)
    wrong = [name for name in specs.keys() | stored.names() if stored.spec(name) != specs.get(name)]
    if wrong:
        raise ValueError(
            f"{path} does not hold what was to be written, e.g. {sorted(wrong)[0]}; remove it and start again"
        )


def saved_bytes(path: str | Path, specs: Mapping[str, Spec]) -> int:
    """How many bytes of `specs` an interrupted `save_arrays` has written already."""
    path = Path(path)
    done = len(list(path.with_name(path.name + ".partial_save").glob("*.pending*")))
    batches = _batches(specs)
    return sum(_size(specs[name]) for names in (batches if path.is_dir() else batches[:done]) for name in names)


class ArrayStore:
    """The arrays of a finished Orbax checkpoint, read on demand; a `TensorSource`.

    Raises FileNotFoundError where there is none, ValueError where it cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} does not exist; the conversion did not finish: run it again")
        try:
            metadata = ocp.metadata(self.path).metadata
            self._specs = {name: (np.dtype(entry.dtype), tuple(entry.shape)) for name, entry in metadata.items()}
            self._metadata = metadata
        except Exception as error:  # Orbax raises whatever its layers raise
            raise ValueError(f"{self.path} is no readable Orbax checkpoint ({_first_line(error)})") from error
        self._context = ocp.Context()
        self._context.pytree.loading.partial_load = True

    def names(self) -> set[str]:
        """All array names."""
        return set(self._specs)

    def spec(self, name: str) -> Spec | None:
        """(dtype, shape) of an array, or None if there is no such array."""
        return self._specs.get(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The array's shape."""
        return self._specs[name][1]

    def dtype(self, name: str) -> np.dtype:
        """The stored dtype."""
        return self._specs[name][0]

    def origin(self, name: str) -> str:
        """The checkpoint's folder."""
        return str(self.path)

    def read(self, name: str) -> np.ndarray:
        """The array on the host."""
        return np.asarray(self._load(name, self._metadata[name]))

    def place(self, name: str, sharding: jax.sharding.Sharding | None = None) -> jax.Array:
        """The array on the device(s); each reads its own part only. Default: the first device."""
        dtype, shape = self._specs[name]
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return self._load(name, jax.ShapeDtypeStruct(shape, dtype, sharding=sharding))

    def _load(self, name: str, abstract):
        try:
            with self._context:
                return ocp.load(self.path, {name: abstract})[name]
        except Exception as error:
            raise ValueError(f"{self.path}: array {name!r} cannot be read ({_first_line(error)})") from error


def _size(spec: Spec) -> int:
    return spec[0].itemsize * math.prod(spec[1])


def _batches(specs: Mapping[str, Spec]) -> list[list[str]]:
    """Names in order, in groups of at most BATCH_BYTES; the same specs give the same groups."""
    batches: list[list[str]] = []
    room = 0
    for name, spec in specs.items():
        if not batches or _size(spec) > room:
            batches.append([])
            room = BATCH_BYTES
        batches[-1].append(name)
        room -= _size(spec)
    return batches


def _checked(array: np.ndarray, spec: Spec, name: str) -> np.ndarray:
    if (array.dtype, array.shape) != spec:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, announced as {spec[0]}{list(spec[1])}")
    return array


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    """Orbax's options for saving, and its failures on a full disk in the user's terms."""
    context = ocp.Context()
    context.array.saving.use_compression = False  # weights hardly compress, and compressing takes most of the time
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    # Every layer of Orbax logs a failure with its stack before raising it, and remarks on continued runs.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with context:
            yield
    except Exception as error:
        full = "No space left" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
        if not full:
            raise
        free = shutil.disk_usage(path.parent).free / 1e9
        raise OSError(
            errno.ENOSPC,
            f"the disk is full ({free:.1f} GB free); make room and run the same command again, it continues",
            str(path.parent),
        ) from error
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
