"""Checkpoints of a training run: whole or absent, the last two kept, refused under other settings."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from codd_jax.io.workspace import write_json
from codd_jax.jsonfile import read_json

SETTINGS = "settings.json"
_KEPT = 2


class TrainingCheckpoints:
    """The checkpoints in a folder, all of one run.

    A step's state lies in `step_<number>/` (Orbax), its notes (plain JSON) in `step_<number>.json`. A state is any
    pytree of arrays; typed PRNG keys, NumPy arrays and Python numbers are allowed.

    Raises:
      ValueError: the folder holds checkpoints made with other `settings`; the message names every difference.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        """Opens or makes the folder; `settings` is what must be equal for a run to be the same, as plain JSON."""
        self.folder = Path(folder).absolute()
        settings = json.loads(json.dumps(settings))
        file = self.folder / SETTINGS
        if file.is_file() and self.steps():
            changed = differences(read_json(file), settings)
            if changed:
                raise ValueError(
                    f"{self.folder} holds checkpoints of a run with other settings:\n  "
                    + "\n  ".join(changed)
                    + "\nRepeat the old settings to continue that run, or choose another folder for this one"
                )
        elif self.steps():
            raise ValueError(
                f"{self.folder} holds checkpoints without the {SETTINGS} that would say how they were made; choose "
                "another folder"
            )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(file, settings)

    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        if not self.folder.is_dir():
            return []
        found = (re.fullmatch(r"step_(\d+)", path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, state: Any, notes: Mapping[str, Any] | None = None) -> None:
        """Saves a state; all but the last two are removed once it is there. Saving a step again replaces it.

        Raises:
          OSError: the disk is full, say; earlier checkpoints are untouched.
        """
        path = self._path(step)
        try:
            if jax.process_index() == 0:
                write_json(self._notes(step), dict(notes or {}))
            with ocp.Context():
                ocp.save(path, jax.tree.map(_storable, state), overwrite=True)
        except Exception as error:
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
                free = shutil.disk_usage(self.folder).free / 1e9
                raise OSError(
                    errno.ENOSPC,
                    f"the disk is full ({free:.1f} GB free): step {step} was not saved; make room and run the same "
                    "command again, it continues from the checkpoint before",
                    str(self.folder),
                ) from error
            raise
        if jax.process_index() == 0:
            for old in self.steps()[:-_KEPT]:
                shutil.rmtree(self._path(old), ignore_errors=True)
                self._notes(old).unlink(missing_ok=True)

    def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any] | None:
        """(step, state) of the latest checkpoint, or of `step`; None where there is none.

        Args:
          abstract: a state of the same structure, of arrays or of `jax.ShapeDtypeStruct`s; each array is restored
            into the sharding that stands there, and as a NumPy array where one stands there.

        Raises:
          ValueError: the checkpoint cannot be read, or holds arrays of other names or shapes.
        """
        steps = self.steps()
        if step is None and not steps:
            return None
        step = steps[-1] if step is None else step
        if step not in steps:
            raise ValueError(f"{self.folder} holds no checkpoint of step {step}; it holds {steps or 'none'}")
        wanted = jax.tree.map(_abstract, abstract)
        try:
            stored = ocp.load(self._path(step), wanted)
        except Exception as error:  # Orbax raises whatever its layers raise
            reason = (str(error).strip() or type(error).__name__)[:400]
            raise ValueError(
                f"{self._path(step)} cannot be restored ({reason}); remove it to continue from an earlier one, or "
                "start in another folder"
            ) from error
        return step, jax.tree.map(_restored, abstract, stored)

    def notes(self, step: int) -> dict[str, Any]:
        """What was noted with a checkpoint."""
        return read_json(self._notes(step)) if self._notes(step).is_file() else {}

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _notes(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.json"


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(leaf: Any) -> Any:
    """Arrays as they are, typed keys as their bits, numbers as NumPy scalars."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array | np.ndarray) else np.asarray(leaf)


def _abstract(leaf: Any) -> Any:
    """What Orbax is asked for in the place of `leaf`."""
    if _is_key(leaf):
        bits = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        return jax.ShapeDtypeStruct(bits.shape, bits.dtype, sharding=_spread(leaf))
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
    return np.asarray(leaf)


def _spread(leaf: Any) -> Any:
    """The sharding of a key's bits: whole on the key's devices (keys are small), which is right for scalars."""
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


def _restored(leaf: Any, stored: Any) -> Any:
    """`stored` in the form of `leaf`."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(stored, impl=jax.random.key_impl(leaf) if isinstance(leaf, jax.Array) else None)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return stored
    return np.asarray(stored) if isinstance(leaf, np.ndarray) else type(leaf)(np.asarray(stored)[()])


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for every setting that differs, with both values; nested settings by dotted names."""
    lines = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, "not set"), now.get(key, "not set")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} before, {new!r} now")
    return lines
