"""The folder of stored windows: zarr3 arrays in shards, with a checksum for every chunk, and what they belong to."""

from __future__ import annotations

import errno
import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from codd_jax.io.workspace import write_json
from codd_jax.jsonfile import read_json
from codd_jax.training.checkpoints import differences
from codd_jax.training.potentials import WindowPotentials

SETTINGS, PROGRESS = "settings.json", "progress.json"


class WindowStore:
    """The folder of a store: arrays hidden [N, T, D], tokens and masked [N, T], written in shards from the front."""

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None):
        """Opens a store; with `settings` makes it where there is none, and refuses one of others.

        Raises:
          FileNotFoundError: no store there, and no settings to make one. ValueError: other settings; damaged facts.
        """
        self.folder = Path(folder).absolute()
        file = self.folder / SETTINGS
        if file.is_file():
            self.settings = read_json(file)
            changed = differences(self.settings, settings) if settings is not None else []
            if changed:
                raise ValueError(
                    f"{self.folder} holds hidden states made with other settings:\n  "
                    + "\n  ".join(changed)
                    + "\nRepeat the old settings to use it, or choose another folder"
                )
        elif settings is None:
            raise FileNotFoundError(f"{self.folder} holds no hidden states (it has no {SETTINGS}); build them first")
        else:
            self.settings = dict(settings)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / PROGRESS, {"finished": 0})
            write_json(file, self.settings)

    @property
    def num_windows(self) -> int:
        """N, when the store is complete."""
        return self.settings["windows"]

    @property
    def finished(self) -> int:
        """The windows that are on the disk, from the first."""
        return int(read_json(self.folder / PROGRESS)["finished"])

    @property
    def shard_windows(self) -> int:
        """Windows of a shard."""
        return self.settings["shard_windows"]

    def write(self, windows: WindowPotentials) -> None:
        """Writes the next shard: `shard_windows` windows, or what is left for the last one.

        Raises:
          OSError: the disk is full; what was there stays.
        """
        first = self.finished
        last = first + len(windows.tokens)
        # Windows without a masked token teach nothing: as zeros their states take no space.
        hidden = np.where(windows.masked.any(-1)[:, None, None], windows.hidden, np.zeros((), windows.hidden.dtype))
        try:
            for name, array in (("hidden", hidden), ("tokens", windows.tokens), ("masked", windows.masked)):
                self._array(name)[first:last].write(array).result()
            write_json(self.folder / PROGRESS, {"finished": last})
        except Exception as error:
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
                free = shutil.disk_usage(self.folder).free / 1e9
                raise OSError(
                    errno.ENOSPC,
                    f"the disk is full ({free:.1f} GB free) after {first} of {self.num_windows} windows; make room and "
                    "run the same command again, it continues (or take fewer masks, or potentials on the fly)",
                    str(self.folder),
                ) from error
            raise

    def read(self, windows: np.ndarray) -> WindowPotentials:
        """The windows with these numbers [batch], on the host; ValueError naming a shard that is damaged."""
        return WindowPotentials.of(*(self._read(name, windows) for name in ("hidden", "tokens", "masked")))

    def read_masked(self) -> np.ndarray:
        """The masks of all finished windows, [N, T] bool."""
        return self._read("masked", np.arange(self.finished))

    def _read(self, name: str, windows: np.ndarray) -> np.ndarray:
        try:
            return self._array(name)[windows].read().result()
        except Exception as error:  # tensorstore's errors are of several kinds
            where = ""
            for shard in np.unique(windows // self.shard_windows):
                low, high = shard * self.shard_windows, min((shard + 1) * self.shard_windows, self.num_windows)
                try:
                    self._array(name)[low:high].read().result()
                except Exception:
                    where = f", shard {shard} ({self.folder / name / 'c' / str(shard)}, windows {low} to {high - 1})"
                    break
            raise ValueError(
                f"{self.folder}: {name}{where} is damaged ({str(error).splitlines()[0][:200]}); remove the folder and "
                "store the states again"
            ) from error

    def _array(self, name: str) -> ts.TensorStore:
        return self._arrays[name]

    @functools.cached_property
    def _arrays(self) -> dict[str, ts.TensorStore]:
        settings = self.settings
        count, length, shard = settings["windows"], settings["window"], settings["shard_windows"]
        shapes = {
            "hidden": (settings["dtype"], (length, settings["width"]), 1),
            "tokens": ("int32", (length,), shard),
            "masked": ("bool", (length,), shard),
        }
        return {name: self._open(name, dtype, count, rest, chunk) for name, (dtype, rest, chunk) in shapes.items()}

    def _open(self, name: str, dtype: str, count: int, rest: tuple[int, ...], chunk: int) -> ts.TensorStore:
        """An array whose shards are files and whose chunks of `chunk` windows are read, and checked, by themselves."""
        inner = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": [chunk, *rest], "codecs": inner, "index_codecs": inner}
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(self.folder / name)},
            "metadata": {
                "data_type": dtype,
                "shape": [count, *rest],
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [self.shard_windows, *rest]},
                },
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "fill_value": False if dtype == "bool" else 0,
            },
        }
        return ts.open(spec, open=True, create=True).result()
