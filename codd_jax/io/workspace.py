"""Folders that appear under their name only when they are finished, and that a killed run leaves ready to continue."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

from codd_jax.jsonfile import read_json

MARKER = "codd.json"
FORMAT, VERSION = "codd_jax", 1

_JOB = "job.json"
_SAMPLES, _SAMPLE_BYTES = 16, 65536


@contextlib.contextmanager
def building(out: str | Path, job: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Path]:
    """Give `<out>.partial` to work in; on success it becomes `out` in one step, on failure it stays to be continued.

    Args:
      out: the folder to make. An empty folder may stand there.
      job: what is being done, plain JSON; the key "content" alone decides whether an interrupted run is the same. A job
        without it (a save of what is in memory) is never continued: it leaves nothing when it fails, and what a killed
        one left is cleared away.
      overwrite: replace a finished folder of this format, and throw away an interrupted run of another job.

    Raises:
      FileExistsError: `out` exists; or the interrupted run that is there was of another job (both are named).
      BlockingIOError: another process is at work on the same `out`.
    """
    out = Path(out).absolute()
    _check_free(out, overwrite)
    partial = out.with_name(out.name + ".partial")
    with _alone(partial, out):
        try:
            _check_free(out, overwrite)  # once more: another process may have finished meanwhile
        except FileExistsError:
            with contextlib.suppress(OSError):
                partial.rmdir()
            raise
        yield from _build(partial, out, job, overwrite)


def _build(partial: Path, out: Path, job: Mapping[str, Any], overwrite: bool) -> Iterator[Path]:
    if any(partial.iterdir()):
        previous = _read_job(partial)
        leftover = "source" in previous and not _resumable(previous)
        if leftover or not _resumable(job) or previous.get("content") != job["content"]:
            if not (overwrite or leftover):
                raise FileExistsError(
                    f"{partial} holds an interrupted run of {_describe(previous)}; this one is {_describe(job)}. "
                    "Finish that one, choose another OUT, remove the folder, or pass --overwrite"
                )
            _empty(partial)
    write_json(partial / _JOB, job)
    try:
        yield partial
    except BaseException:
        if not _resumable(job):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        replaced = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent))
        os.rename(out, replaced / out.name)
        os.rename(partial, out)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        os.rename(partial, out)
    (out / _JOB).unlink()


@contextlib.contextmanager
def _alone(partial: Path, out: Path) -> Iterator[None]:
    """Makes the folder and holds a lock on it, which ends with the process (and with what it forked); no lock where the
    system or its disk has none."""
    if fcntl is None:
        partial.mkdir(parents=True, exist_ok=True)
        yield
        return
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # who held it has just renamed or removed it
            continue
        if _lock(handle, partial, out):
            break
        os.close(handle)
    try:
        yield
    finally:
        os.close(handle)


def _lock(handle: int, partial: Path, out: Path) -> bool:
    """Whether the open folder is locked, as far as that can be done, and still the one of that name."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BlockingIOError(
            f"another process is writing {out} just now (in {partial}); wait for it, or choose another OUT"
        ) from None
    except OSError:
        return True
    try:
        return os.path.samestat(os.fstat(handle), os.stat(partial))
    except FileNotFoundError:
        return False


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_marker(folder: str | Path, kind: str, **content: Any) -> None:
    """Write codd.json, which says that a folder is complete and what it holds; written last."""
    write_json(Path(folder) / MARKER, {"format": FORMAT, "version": VERSION, "kind": kind, **content})


def read_marker(folder: str | Path) -> dict[str, Any] | None:
    """The codd.json of a converted folder, or None where there is none.

    Raises:
      ValueError: the file is no codd.json of this format, or of a newer version.
    """
    path = Path(folder) / MARKER
    if not path.is_file():
        return None
    marker = read_json(path)
    try:
        known = marker["format"] == FORMAT and marker["kind"] in ("backbone", "circuit", "bundle")
        version = int(marker["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not readable ({error!r}); convert again") from error
    if not known or version > VERSION:
        raise ValueError(f"{path} is version {version} of another writer; this program reads {FORMAT} up to {VERSION}")
    return marker


def fingerprint(files: Iterable[str | Path]) -> str:
    """A digest of files' names, sizes, beginnings and sixteen samples each: cheap, and different for other weights."""
    digest = hashlib.sha256()
    for path in sorted(map(Path, files), key=lambda path: path.name):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with open(path, "rb") as file:
            for number in range(_SAMPLES):
                file.seek(number * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
                if size <= _SAMPLE_BYTES:
                    break
    return digest.hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _check_free(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{out} exists already; choose another OUT, or pass --overwrite to replace it")
    if not (out / MARKER).is_file():
        raise FileExistsError(f"{out} was not written by a conversion (it has no {MARKER}); remove it yourself")


def _read_job(partial: Path) -> dict[str, Any]:
    try:
        return read_json(partial / _JOB)
    except (OSError, ValueError):
        return {}


def _resumable(job: Mapping[str, Any]) -> bool:
    return job.get("content") is not None


def _describe(job: Mapping[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in job.items() if key not in ("source", "content") and value)
    return f"{job.get('source', 'something unknown')}" + (f" ({facts})" if facts else "")
