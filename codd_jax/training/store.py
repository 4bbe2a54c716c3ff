"""Hidden states of masked windows: computed once, shard by shard, and read by every circuit trained on them.

A state is D numbers where its potentials would be V (a factor of 31 for LLaDA-8B). A store belongs to one backbone, one
data set and one way of masking, and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from codd_jax.backbones import Transformer
from codd_jax.training.potentials import Head, WindowPotentials, epoch_batch, fill_up, make_encoder
from codd_jax.training.rows import Rows, mask_rows, window_starts
from codd_jax.training.window_store import WindowStore

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
