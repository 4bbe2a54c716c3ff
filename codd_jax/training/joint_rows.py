"""Rows for joint fine-tuning: every window of a row learns from one run of the backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import struct

from codd_jax.training.rows import Rows, window_starts


@struct.dataclass
class RowBatch:
    """Clean rows with their windows.

    Attributes:
      rows: [batch, positions].
      starts: [batch, windows] int32, the first position of each window; below 0: no window.
    """

    rows: Rows
    starts: jax.Array


class RowSource:
    """Batches of rows of one width, in an order that depends on the seed and the step alone."""

    def __init__(
        self,
        rows: Sequence[Rows] | Rows,
        validation: Sequence[Rows] | Rows = (),
        *,
        batch_size: int,
        aligned: bool = True,
        seed: int = 0,
    ):
        """Takes clean rows on the host, one group for each width.

        Args:
          rows, validation: to learn from, and held out.
          batch_size: rows of a batch.
          aligned: windows at the blocks of block-wise decoding; False: moved by an offset drawn for each row.
          seed: of order and offsets.

        Raises:
          ValueError: no rows, or groups with windows of unlike lengths.
        """
        self.groups, self.held_out = (_groups(each) for each in (rows, validation))
        if not self.groups:
            raise ValueError("there are no rows to learn from")
        lengths = {group.window for group in (*self.groups, *self.held_out)}
        if len(lengths) > 1:
            raise ValueError(f"the rows are laid out for windows of {sorted(lengths)} tokens; they must be equal")
        self.window = lengths.pop()
        self.batch_size, self.aligned, self.seed = batch_size, aligned, seed
        self._plan: tuple[int, list[tuple[int, np.ndarray]]] = (-1, [])

    def __len__(self) -> int:
        """Rows of an epoch."""
        return sum(len(group.tokens) for group in self.groups)

    @property
    def width(self) -> int:
        """Positions of the widest batch."""
        return max(group.tokens.shape[1] for group in (*self.groups, *self.held_out))

    def batch(self, step: int) -> RowBatch:
        """The rows of a step; every row comes once an epoch, and some twice where a group does not fill its batches."""
        per_epoch = sum(-(-len(group.tokens) // self.batch_size) for group in self.groups)
        epoch, place = divmod(step, per_epoch)
        if self._plan[0] != epoch:
            self._plan = (epoch, self._epoch(epoch))
        number, chosen = self._plan[1][place]
        return self._make(self.groups[number], chosen, np.random.default_rng((self.seed, step, 1)), len(chosen))

    def validation(self) -> Iterator[RowBatch]:
        """The held-out rows in batches of the same size; rows that fill up the last have no windows."""
        rng = np.random.default_rng((self.seed, 2))
        for group in self.held_out:
            for first in range(0, len(group.tokens), self.batch_size):
                chosen = np.arange(first, min(first + self.batch_size, len(group.tokens)))
                filled = np.concatenate([chosen, np.zeros(self.batch_size - len(chosen), np.int64)])
                yield self._make(group, filled, rng, len(chosen))

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """(group, its rows) of every batch of an epoch, in random order."""
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for number, group in enumerate(self.groups):
            order = rng.permutation(len(group.tokens))
            order = np.resize(order, -(-len(order) // self.batch_size) * self.batch_size)
            batches += [(number, part) for part in order.reshape(-1, self.batch_size)]
        return [batches[index] for index in rng.permutation(len(batches))]

    def _make(self, group: Rows, chosen: np.ndarray, rng: np.random.Generator, real: int) -> RowBatch:
        rows = group.take(chosen)
        prompts, lengths = np.asarray(rows.prompt_lengths), np.asarray(rows.lengths)
        starts = np.full((len(chosen), int(np.max(group.num_windows))), -1, np.int32)
        for row in range(real):
            found = window_starts(rng, int(prompts[row]), int(lengths[row]), self.window, self.aligned)
            starts[row, : len(found)] = found
        return RowBatch(rows=rows, starts=starts)


def _groups(rows: Sequence[Rows] | Rows) -> list[Rows]:
    groups = [rows] if isinstance(rows, Rows) else list(rows)
    return [group for group in groups if len(group.tokens)]
