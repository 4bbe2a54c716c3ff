"""Write backbones as converted folders: one tensor in memory at a time, resumable, complete or absent."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from flax import nnx

from codd_jax.backbones.config import family_module
from codd_jax.backbones.low_rank import require_merged
from codd_jax.backbones.transformer import Transformer
from codd_jax.io import safetensors
from codd_jax.io.arrays import Spec, save_arrays, saved_bytes
from codd_jax.io.checkpoint import PARAMS, OpenBackbone
from codd_jax.io.mapped import view
from codd_jax.io.workspace import building, write_json, write_marker

# Small files of a checkpoint that go along: what tokenizers and generation settings are read from, and the licence.
COMPANIONS = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json"),
    *("LICENSE", "LICENSE.txt"),
)

# Casts of larger tensors go through a file: the tensor, its cast and Orbax's copy would be in memory together.
_SCRATCH, _SCRATCH_BYTES = "scratch", 256 * 2**20


def write_backbone(
    folder: str | Path,
    opened: OpenBackbone,
    *,
    dtype: Any = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> None:
    """Write a backbone into `folder` as params/, config.json, tokenizer files and, last, codd.json.

    Continues an interrupted call of the same backbone (the caller makes sure, see `io.workspace.building`).

    Args:
      folder: exists. opened: the backbone. dtype: what floating-point tensors are cast to; None keeps each one's.
      about: more facts for codd.json.

    Raises:
      OSError: too little room on the disk, said before anything is written, or a full disk on the way.
    """
    folder = Path(folder)
    source, path = opened.source, folder / PARAMS
    if dtype is not None and hasattr(source, "in_dtype"):
        source = source.in_dtype(dtype)
    placements = safetensors.plan(opened.config, source)
    specs: dict[str, Spec] = {
        item.name: (np.dtype(dtype or source.dtype(item.name)), source.shape(item.name)) for item in placements
    }
    (folder / _SCRATCH).unlink(missing_ok=True)  # of a run that was killed
    casts = (_bytes(spec) for name, spec in specs.items() if source.dtype(name) != spec[0])
    scratch = max((size for size in casts if size >= _SCRATCH_BYTES), default=0)
    check_room(folder, sum(_bytes(spec) for spec in specs.values()) - saved_bytes(path, specs) + scratch)

    def read(name: str) -> np.ndarray:
        return _cast(view(source, name), specs[name][0], folder / _SCRATCH)

    save_arrays(path, specs, read, description="backbone", progress=progress)
    copy_companions(opened.folder, folder)
    shutil.copyfile(opened.folder / "config.json", folder / "config.json")
    sizes = {"num_params": sum(math.prod(shape) for _, shape in specs.values())}
    dtypes = sorted({str(spec[0]) for spec in specs.values()})
    write_marker(folder, "backbone", family=opened.config.family, dtype=dtypes, **sizes, **(about or {}))


def save_backbone(
    folder: str | Path,
    backbone: Transformer,
    config_json: Mapping[str, Any] | None = None,
    tokenizer_folder: str | Path | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> None:
    """Save a backbone that is in memory as a converted folder; arrays leave the devices one layer's tensor at a time.

    Args:
      folder: the folder to make; complete or absent, whatever happens.
      config_json: the original config.json; None writes one that the family's reader accepts.
      tokenizer_folder: where to copy tokenizer files from; None leaves them out.

    Raises:
      FileExistsError: the folder exists (`overwrite` replaces a converted folder). OSError: the disk is full.
      ValueError: LoRA factors that are not merged.
    """
    require_merged(backbone)
    config = backbone.config
    params = dict(nnx.to_flat_state(nnx.state(backbone, nnx.Param)))
    arrays: dict[str, tuple[Any, int | None]] = {}
    specs: dict[str, Spec] = {}
    for (path, layer), shape in safetensors.expected_shapes(config).items():
        stacked = layer is not None and backbone.layout == "stacked"
        array = params[path if layer is None or stacked else ("blocks", layer, *path[1:])][...]
        name = safetensors.checkpoint_name(config, path, layer)
        arrays[name], specs[name] = (array, layer if stacked else None), (np.dtype(array.dtype), shape)

    def read(name: str) -> np.ndarray:
        array, layer = arrays[name]
        return np.asarray(array if layer is None else array[layer])

    # Without "content": never continued, as the weights may have changed.
    with building(folder, {"source": "a backbone in memory"}, overwrite=overwrite) as partial:
        check_room(partial, sum(_bytes(spec) for spec in specs.values()))
        save_arrays(partial / PARAMS, specs, read, description="saving", progress=progress)
        if tokenizer_folder is not None:
            copy_companions(Path(tokenizer_folder), partial)
        write_json(partial / "config.json", config_json or family_module(config.family).write_config(config))
        dtypes = sorted({str(spec[0]) for spec in specs.values()})
        write_marker(partial, "backbone", family=config.family, dtype=dtypes)


def check_room(folder: Path, needed: int) -> None:
    """Raise OSError naming both numbers where `folder`'s disk has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 1e9:.2f} GB are to be written, {free / 1e9:.2f} GB are free; make room or choose another disk",
            str(folder),
        )


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizer, generation settings and licence, where they are."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _bytes(spec: Spec) -> int:
    return spec[0].itemsize * math.prod(spec[1])


def _cast(array: np.ndarray, dtype: np.dtype, scratch: Path) -> np.ndarray:
    """The array in `dtype`; a large one some rows at a time into a file that has lost its name already."""
    if array.dtype == dtype:
        return array
    size = array.size * dtype.itemsize
    if size < _SCRATCH_BYTES:
        return array.astype(dtype)
    try:
        with open(scratch, "wb") as file:
            _allocate(file, size)
        cast = np.memmap(scratch, np.uint8, "r+", shape=(size,)).view(dtype).reshape(array.shape)
    finally:
        scratch.unlink(missing_ok=True)
    rows = max(1, _SCRATCH_BYTES // (4 * dtype.itemsize * math.prod(array.shape[1:])))
    for first in range(0, len(array), rows):
        cast[first : first + rows] = array[first : first + rows].astype(dtype)
    return np.asarray(cast)


def _allocate(file: BinaryIO, size: int) -> None:
    """Give a file its blocks on the disk: writing through a mapping to a full disk would end the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # not on this file system
            file.truncate(size)
            return
        full = "the disk is full; make room and run the same command again, it continues"
        raise OSError(error.errno, full if error.errno == errno.ENOSPC else error.strerror, file.name) from error
