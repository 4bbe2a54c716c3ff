"""Hidden states of masked windows on disk: written once, shard by shard, and read by every circuit trained on them.

A state is D numbers where its potentials would be V (a factor of 31 for LLaDA-8B). Arrays are zarr3 with a checksum
for every chunk; a folder belongs to one backbone, one data set and one way of masking, and says so.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from flax import nnx
from tqdm import tqdm

from codd_jax.backbones import Transformer
from codd_jax.io.workspace import write_json
from codd_jax.jsonfile import read_json
from codd_jax.training.checkpoints import differences
from codd_jax.training.potentials import Head, WindowPotentials, epoch_batch, fill_up, make_encoder
from codd_jax.training.rows import Rows, mask_rows, window_starts

SETTINGS, PROGRESS = "settings.json", "progress.json"
_SHARD_BYTES = 64 * 2**20
# Values sampled from every parameter: two trainings of one architecture differ in all of them.
_SAMPLES = 64


def fingerprint(backbone: Transformer) -> str:
    """A digest of a backbone's configuration and of some of its weights."""
    digest = hashlib.sha256(repr(backbone.config).encode())
    for path, param in nnx.to_flat_state(nnx.state(backbone, nnx.Param)):
        array = param[...]
        step = max(1, array.size // _SAMPLES)
        sample = np.asarray(jax.device_get(array.reshape(-1)[: step * _SAMPLES : step]), np.float32)
        digest.update(f"{'.'.join(map(str, path))}{tuple(array.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]


def fingerprint_rows(groups: Sequence[Rows]) -> str:
    """A digest of clean rows, and with them of the data and the tokenizer that they were made from."""
    digest = hashlib.sha256()
    for rows in groups:
        for array in jax.tree.leaves(rows):
            array = np.ascontiguousarray(array)
            digest.update(str(array.shape).encode() + array.tobytes())
    return digest.hexdigest()[:16]


def build_store(
    folder: str | Path,
    backbone: Transformer,
    rows: Sequence[Rows] | Rows,
    *,
    masks: int = 4,
    scheme: str = "uniform",
    aligned: bool | None = None,
    seed: int = 0,
    batch_rows: int = 8,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> WindowStore:
    """Masks and encodes rows and stores their windows; continues where an interrupted call stopped.

    Args:
      folder: made if need be. Nothing is computed where it is complete.
      backbone: frozen; its dtype is the one stored.
      rows: clean rows, one group for each width.
      masks: how often every row is masked. scheme, aligned, seed: as in `FreshWindows`.
      batch_rows: rows that go through the backbone together.
      about: further settings that must agree, such as the tokenizer's digest; plain JSON.
      progress: show a bar.

    Raises:
      ValueError: the folder was made with other settings; every difference is named.
      OSError: the disk is full; finished shards stay, and the same call continues.
    """
    groups = [rows] if isinstance(rows, Rows) else list(rows)
    if masks < 1 or not groups:
        raise ValueError(f"{masks} masks of {len(groups)} groups of rows: there must be at least one of each")
    aligned = not backbone.config.shift_logits if aligned is None else aligned
    length, width = groups[0].window, backbone.config.width
    per_mask = sum(int(np.sum(group.num_windows)) for group in groups)
    shard = max(1, _SHARD_BYTES // (length * width * backbone.dtype.itemsize))
    settings = {
        "backbone": fingerprint(backbone),
        "rows": fingerprint_rows(groups),
        "window": length,
        "width": width,
        "dtype": str(backbone.dtype),
        "masks": masks,
        "scheme": scheme,
        "aligned": aligned,
        "seed": seed,
        "windows": masks * per_mask,
        "shard_windows": min(shard, masks * per_mask),
        **(about or {}),
    }
    store = WindowStore(folder, settings)
    done = store.finished
    if done < store.num_windows:
        bar = tqdm(
            total=store.num_windows,
            initial=done,
            desc="storing hidden states",
            unit="window",
            disable=not progress,
        )
        with bar:
            for windows in _encoded(backbone, groups, store, masks, scheme, aligned, seed, batch_rows):
                store.write(windows)
                bar.update(store.finished - bar.n)
    return store


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


class StoredWindows:
    """A `WindowSource` over a finished store, read as it is needed."""

    def __init__(
        self,
        head: Head,
        store: WindowStore,
        validation: WindowStore | None = None,
        *,
        batch_size: int = 64,
        seed: int = 0,
    ):
        """Raises ValueError for a store that is not finished, of another width, or without a masked token."""
        for part in (store, validation):
            if part is not None and part.finished < part.num_windows:
                raise ValueError(
                    f"{part.folder} holds {part.finished} of {part.num_windows} windows; build it to the end first"
                )
            if part is not None and part.settings["width"] != head.width:
                raise ValueError(
                    f"{part.folder} holds states of width {part.settings['width']} and the head reads {head.width}; "
                    "they belong to different backbones"
                )
        self.head, self.batch_size, self.seed = head, batch_size, seed
        self.length = store.settings["window"]
        self._store, self._held_out = store, validation
        self._usable = np.flatnonzero(store.read_masked().any(-1))
        if not self._usable.size:
            raise ValueError(f"none of the windows in {store.folder} has a masked token; there is nothing to learn")

    def __len__(self) -> int:
        """Windows of an epoch."""
        return len(self._usable)

    def batch(self, step: int) -> WindowPotentials:
        """The windows of a step; every window comes once an epoch."""
        return self._store.read(epoch_batch(self._usable, self.seed, step, self.batch_size))

    def validation(self) -> Iterator[WindowPotentials]:
        """The held-out windows in batches."""
        if self._held_out is not None:
            count = self._held_out.num_windows
            for first in range(0, count, self.batch_size):
                windows = self._held_out.read(np.arange(first, min(first + self.batch_size, count)))
                yield fill_up(windows, self.batch_size)

    def windows(self) -> WindowPotentials:
        """All windows that can be learnt from, in memory."""
        return self._store.read(self._usable)


def _encoded(
    backbone: Transformer,
    groups: Sequence[Rows],
    store: WindowStore,
    masks: int,
    scheme: str,
    aligned: bool,
    seed: int,
    batch_rows: int,
) -> Iterator[WindowPotentials]:
    """The shards that are still to be written, in order."""
    encode = make_encoder(backbone, groups[0].window)
    parts = _masked_groups(groups, masks, scheme, aligned, seed, backbone.config.mask_id)
    skip, held = store.finished, []
    for noisy, rows, masked, starts in parts:
        there = starts >= 0
        for first in range(0, len(there), batch_rows):
            chosen = np.arange(first, min(first + batch_rows, len(there)))
            count = int(there[chosen].sum())
            if skip >= count:
                skip -= count
                continue
            full = np.resize(chosen, batch_rows)  # a last batch repeats its rows, for one compiled program
            arrays = (noisy[full], rows.tokens[full], masked[full], rows.lengths[full], starts[full])
            windows = jax.device_get(encode(*arrays))
            held.append(windows.take(np.flatnonzero(there[chosen].reshape(-1))[skip:]))
            skip = 0
            while sum(len(part.tokens) for part in held) >= store.shard_windows:
                whole = _join(held)
                yield whole.take(slice(0, store.shard_windows))
                held = [whole.take(slice(store.shard_windows, None))]
    if held and len(held[-1].tokens):
        yield _join(held)


def _masked_groups(
    groups: Sequence[Rows], masks: int, scheme: str, aligned: bool, seed: int, mask_id: int
) -> Iterator[tuple[np.ndarray, Rows, np.ndarray, np.ndarray]]:
    """(noisy tokens, clean rows, masks, window starts) of every group, `masks` times; starts are filled up with -1."""
    for repeat in range(masks):
        for number, rows in enumerate(groups):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), repeat), number)
            noisy, masked, _ = jax.device_get(mask_rows(key, rows, mask_id, scheme))
            rng = np.random.default_rng((seed, repeat, number))
            rows = jax.tree.map(np.asarray, rows)
            starts = np.full((len(rows.tokens), int(rows.num_windows.max())), -1, np.int32)
            for row, (prompt, length) in enumerate(zip(rows.prompt_lengths, rows.lengths, strict=True)):
                found = window_starts(rng, int(prompt), int(length), rows.window, aligned)
                starts[row, : len(found)] = found
            yield noisy, rows, masked, starts


def _join(parts: list[WindowPotentials]) -> WindowPotentials:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
