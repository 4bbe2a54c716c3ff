"""The folder that a run leaves behind: its settings, a line for each finished sample, and a summary.

Samples are appended as they finish, so that a killed run loses at most the answers in flight and continues from there.
"""

import contextlib
import json
import math
import os
import pathlib
import platform
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from codd_jax.distributed import from_first

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SETTINGS, SAMPLES, SUMMARY, LOCK = "settings.json", "samples.jsonl", "summary.json", ".lock"
# The standard normal's 97.5 % quantile.
_Z = 1.959963984540054

Key = tuple[int, int]


def wilson_interval(correct: float, total: int, z: float = _Z) -> tuple[float, float]:
    """Wilson's score interval of a proportion (JASA 22, 1927): 95 % at the default `z`; honest near 0 and 1.

    Raises:
      ValueError: `total` below 1, or more correct than there are.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} of {total} is no proportion")
    share = correct / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At the ends the bound is the proportion itself; rounding must not carry it past.
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two nested settings, one `name: before → now` a line, in a stable order."""
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {json.dumps(old)} → {json.dumps(new)}")
    return lines


class ResultsFolder:
    """One run's files. Opening it checks that what is there was made with the same settings, and that nobody else is
    writing there.

    Attributes:
      path: the folder.
      samples: finished samples by (document id, repeat), as read at the start and appended since.
    """

    def __init__(self, path: str | os.PathLike, settings: Mapping[str, Any]):
        """Opens or makes the folder.

        Args:
          path: the folder; made if it is not there.
          settings: everything that may change an answer or a score; compared with what the folder was made with.

        Raises:
          ValueError: the samples in it were made with other settings (the message lists them), or a file is damaged.
          FileExistsError: another process is writing there.
        """
        self.path = pathlib.Path(path)
        self.samples: dict[Key, dict[str, Any]] = {}
        settings = json.loads(json.dumps(settings))
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path / LOCK)
        try:
            self._open(settings)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: dict[str, Any]) -> None:
        if not (self.path / SAMPLES).exists():
            # Nothing was finished here, so whatever was intended may change.
            write_json(self.path / SETTINGS, settings)
        elif (self.path / SETTINGS).is_file():
            self._check_settings(settings)
            self._read_samples()
        else:
            raise ValueError(
                f"{self.path} holds {SAMPLES} without the {SETTINGS} that would say how they were made; choose another "
                "--output_dir or --tag"
            )

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        before = _read_json(self.path / SETTINGS)
        changed = differences(before, settings)
        if changed:
            raise ValueError(
                f"{self.path} was made with other settings:\n  "
                + "\n  ".join(changed)
                + "\nRepeat the old settings to continue it, or choose another --output_dir or --tag"
            )

    def _read_samples(self) -> None:
        file = self.path / SAMPLES
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            # A run killed while it was writing: the last line never happened.
            os.truncate(file, whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                record = json.loads(line)
                self.samples.setdefault((record["doc_id"], record["repeat"]), record)
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{file}, line {number} is damaged; remove that line and start again, its sample will be repeated"
                ) from None

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds finished samples and sees them onto the disk before returning."""
        records = list(records)
        with (self.path / SAMPLES).open("ab") as file:
            file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
            file.flush()
            os.fsync(file.fileno())
        self.samples.update({(record["doc_id"], record["repeat"]): dict(record) for record in records})

    def write_summary(self, summary: Mapping[str, Any]) -> pathlib.Path:
        """Writes the summary in one piece and returns where it is."""
        return write_json(self.path / SUMMARY, summary)

    def close(self) -> None:
        """Lets other processes write here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Mirror:
    """What the other processes of a run hold in place of the folder, which the first one writes."""

    def __init__(self, path: pathlib.Path, records: Iterable[dict[str, Any]]):
        self.path = path
        self.samples: dict[Key, dict[str, Any]] = {}
        self.append(records)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Remembers finished samples."""
        self.samples.update({(record["doc_id"], record["repeat"]): dict(record) for record in records})

    def write_summary(self, summary: Mapping[str, Any]) -> pathlib.Path:
        """Where the first process writes it."""
        return self.path / SUMMARY


@contextlib.contextmanager
def open_results(path: str | os.PathLike, settings: Mapping[str, Any]) -> Iterator[ResultsFolder | Mirror]:
    """The folder, in the process that writes it; a `Mirror` of it in the other processes of a distributed run."""
    opened: list[ResultsFolder] = []

    def read() -> list[dict[str, Any]]:
        opened.append(ResultsFolder(path, settings))
        return list(opened[0].samples.values())

    try:
        records = from_first(read)
        yield opened[0] if opened else Mirror(pathlib.Path(path), records)
    finally:
        for folder in opened:
            folder.close()


def _lock(path: pathlib.Path) -> int | None:
    """A file descriptor that keeps the lock until it is closed, or the process ends however it may.

    POSIX record locks: children do not inherit them, and network file systems know them.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        who = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise FileExistsError(
            f"{path.parent} is being written by {who}; wait for it, or choose another --output_dir or --tag"
        ) from None
    except OSError as error:
        os.close(descriptor)
        warnings.warn(f"{path.parent} cannot be locked ({error}); let only one run write there", stacklevel=4)
        return None
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
    return descriptor


def write_json(path: pathlib.Path, content: Any) -> pathlib.Path:
    """Writes JSON so that a reader sees the old file or the whole new one, never half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); choose another --output_dir or --tag") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold settings; choose another --output_dir or --tag")
    return content
