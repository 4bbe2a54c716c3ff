"""Potentials on the fly: the backbone runs on freshly masked rows at every step, and nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from codd_jax.backbones import Transformer
from codd_jax.sharding import batch_sharding
from codd_jax.training.potentials import Head, WindowPotentials, fill_up, make_encoder
from codd_jax.training.rows import Rows, epoch_units, mask_rows

# Stream of random numbers that validation uses, whatever the number of training steps.
_VALIDATION = 2**31


class FreshWindows:
    """A `WindowSource` that masks and encodes rows when they are asked for."""

    def __init__(
        self,
        backbone: Transformer,
        rows: Sequence[Rows] | Rows,
        validation: Sequence[Rows] | Rows = (),
        *,
        batch_size: int = 64,
        windows_per_row: int = 4,
        scheme: str = "uniform",
        aligned: bool | None = None,
        validation_masks: int = 1,
        seed: int = 0,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Takes clean rows, one group for each width.

        Args:
          backbone: frozen.
          rows, validation: to learn from, and held out.
          batch_size: windows of a batch, a multiple of `windows_per_row`.
          windows_per_row: windows taken from one run of the backbone; rows with fewer leave the rest empty.
          scheme: of masking, as `rows.mask_rows`.
          aligned: windows at the blocks of block-wise decoding; default: unless the family is decoded on the full
            canvas (Dream).
          validation_masks: how often each validation row is masked.
          seed: of masks, order and offsets.
          mesh: rows are spread over its data axis.

        Raises:
          ValueError: a batch that is no multiple of the windows of a row, no rows, or groups of unlike windows.
        """
        self._rows = [rows] if isinstance(rows, Rows) else list(rows)
        self._validation = [validation] if isinstance(validation, Rows) else list(validation)
        if batch_size % windows_per_row:
            raise ValueError(
                f"a batch of {batch_size} windows cannot be made of rows with {windows_per_row} each; choose a batch "
                "size that is a multiple of the windows per row"
            )
        if not self._rows or not all(len(group.tokens) for group in self._rows):
            raise ValueError("there are no rows to learn from")
        lengths = {group.window for group in (*self._rows, *self._validation)}
        if len(lengths) > 1:
            raise ValueError(f"the rows are laid out for windows of {sorted(lengths)} tokens; they must be equal")
        self.length, self.batch_size, self.seed = lengths.pop(), batch_size, seed
        self.head = Head.of(backbone)
        self._per_row, self._scheme, self._masks = windows_per_row, scheme, validation_masks
        self._aligned = not backbone.config.shift_logits if aligned is None else aligned
        self._mask_id = backbone.config.mask_id
        self._mesh = mesh
        self._encode = make_encoder(backbone if mesh is None else backbone.with_options(mesh=mesh), self.length)
        self._plan: tuple[int, list] = (-1, [])

    def __len__(self) -> int:
        """Windows of an epoch."""
        return sum(int(np.sum(group.num_windows)) for group in self._rows)

    def batch(self, step: int) -> WindowPotentials:
        """Rows masked for this step alone, and the windows of those rows."""
        per_epoch = sum(-(-_count(group, self._per_row) // self._rows_of_batch) for group in self._rows)
        epoch, place = divmod(step, per_epoch)
        if self._plan[0] != epoch:
            self._plan = (epoch, self._epoch(self._rows, epoch))
        return self._make(self._rows, self._plan[1][place], step)

    def validation(self) -> Iterator[WindowPotentials]:
        """The held-out rows, masked the same way every time."""
        for repeat in range(self._masks):
            for number, unit in enumerate(self._epoch(self._validation, _VALIDATION + repeat, fill=False)):
                yield fill_up(
                    self._make(self._validation, unit, _VALIDATION + repeat * 2**16 + number), self.batch_size
                )

    @property
    def _rows_of_batch(self) -> int:
        return self.batch_size // self._per_row

    def _epoch(self, groups: list[Rows], epoch: int, fill: bool = True) -> list[tuple[int, list]]:
        """(group, its units) of every batch of an epoch, in random order; last batches wrap around with `fill`."""
        batches, size = [], self._rows_of_batch
        for number, group in enumerate(groups):
            units = list(epoch_units(self.seed + number, epoch, group, self._per_row, self._aligned))
            if fill:
                units += [units[index % len(units)] for index in range(-len(units) % size)]
            batches += [(number, units[first : first + size]) for first in range(0, len(units), size)]
        order = np.random.default_rng((self.seed, epoch, 1)).permutation(len(batches))
        return [batches[index] for index in order]

    def _make(self, groups: list[Rows], planned: tuple[int, list], stream: int) -> WindowPotentials:
        number, units = planned
        empty = (0, np.zeros(0, np.int32))  # keeps the shape of a last batch that is not filled
        units = units + [empty] * (self._rows_of_batch - len(units))
        rows = groups[number].take(np.asarray([row for row, _ in units]))
        starts = np.full((len(units), self._per_row), -1, np.int32)
        for place, (_, found) in enumerate(units):
            starts[place, : len(found)] = found
        key = jax.random.fold_in(jax.random.key(self.seed), stream)
        noisy, masked, _ = mask_rows(key, rows, self._mask_id, self._scheme)
        arrays = (noisy, rows.tokens, masked, rows.lengths, starts)
        if self._mesh is not None:
            arrays = jax.device_put(arrays, batch_sharding(self._mesh))
        return self._encode(*arrays)


def _count(rows: Rows, per_row: int) -> int:
    """Units of an epoch."""
    return int(np.sum(-(-np.asarray(rows.num_windows) // per_row)))
