"""Compile once: XLA's programs kept on disk between runs, and a run's programs made before its first prompt."""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import jax
from tqdm import tqdm

from codd_jax.decoding.canvas import row_keys
from codd_jax.decoding.config import DecodeConfig
from codd_jax.generation import LENGTH_BUCKET, Job

if TYPE_CHECKING:
    from codd_jax.model import CoDD


def enable_compilation_cache(folder: str | pathlib.Path | None = None) -> pathlib.Path | None:
    """Keeps compiled programs on disk; call it before anything is compiled.

    A folder that the user chose through JAX_COMPILATION_CACHE_DIR (or `jax.config`) is respected, and so is
    JAX_ENABLE_COMPILATION_CACHE=0, which switches the cache off.

    Args:
      folder: default where nobody chose one; None: codd_jax/xla below $XDG_CACHE_HOME or ~/.cache, which only the user
        may read, since the cache holds machine code.

    Returns:
      The folder in use; None where the cache is off or no folder can be made, which is a warning.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir:
        return pathlib.Path(jax.config.jax_compilation_cache_dir)
    chosen = default_folder() if folder is None else pathlib.Path(folder)
    try:
        chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(chosen, os.W_OK):
            raise PermissionError(f"{chosen} cannot be written")
        if hasattr(os, "getuid") and chosen.stat().st_uid != os.getuid():
            raise PermissionError(f"{chosen} belongs to another user, who could put programs there")
    except OSError as error:
        warnings.warn(
            f"compiled programs are not kept ({error}); set JAX_COMPILATION_CACHE_DIR to a folder of yours",
            stacklevel=2,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    return chosen


def default_folder() -> pathlib.Path:
    """The user's own folder for compiled programs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path("~/.cache").expanduser()) / "codd_jax" / "xla"


def compile_ahead(
    model: CoDD, config: DecodeConfig, lengths: Iterable[int], *, rows: int = 8, progress: bool = True
) -> list[int]:
    """Makes the decoding programs of a run before it begins: one for every bucket of lengths.

    Each is made by the very call that will use it, on a row with a single mask, so that it costs the compilation and
    one step. Masks inside a prompt and cache="prefix" need further programs, which are made when they are met.

    Args:
      model: what will decode. config: how.
      lengths: prompt and generation together, of all prompts.
      rows: of a batch, as `generate` cuts them: its batch_size, or the number of prompts where that is less.
      progress: show a bar.

    Returns:
      The widths of the buckets, ascending.
    """
    widths = sorted({-(-int(length) // LENGTH_BUCKET) * LENGTH_BUCKET for length in lengths})
    if not widths or widths[0] < 1 or rows < 1:
        raise ValueError(f"lengths {widths} and {rows} rows: there must be at least one of each, and none below 1")
    mask_id, pad_id = model.config.mask_id, model.config.pad_id
    with tqdm(widths, desc="compiling", unit="program", disable=not progress) as bar:
        for width in bar:
            bar.set_postfix_str(f"{rows} x {width}")
            text = [pad_id] * (width - 1) + [mask_id]
            Job(model, config, [text], row_keys([text], 0), 0, prompt_lengths=[width - 1]).run(rows, pad_batch=True)
    return widths
