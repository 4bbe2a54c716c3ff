"""What a result rests on: the identity of the files that went in, and the machine and packages that ran."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "tokenizers", "datasets", "lm_eval")
# Whole digests of 16 GB of weights would take minutes; the ends of a file tell two trainings apart as surely.
_WHOLE, _END = 8 << 20, 1 << 20


def identify(source: str | os.PathLike | None) -> dict[str, str] | None:
    """Names a checkpoint, an adapter or a file of problems so that a change of content shows.

    Returns:
      `{"source": what was given}` for a hub id; a digest beside it for what lies on this machine, taken from names,
      sizes, contents of small files and both ends of large ones; None for None. Dates and locations do not count.
    """
    if source is None:
        return None
    path = pathlib.Path(source).expanduser()
    if not path.exists():
        return {"source": str(source)}
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        name = "" if file == path else file.relative_to(path).as_posix()
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            if file.stat().st_size <= _WHOLE:
                digest.update(content.read())
            else:
                digest.update(content.read(_END))
                content.seek(-_END, os.SEEK_END)
                digest.update(content.read())
    return {"source": path.name, "digest": digest.hexdigest()[:16]}


def environment() -> dict[str, Any]:
    """The machine, the accelerators and the versions of the packages that decide results."""
    import jax

    from codd_jax.version import __version__

    devices = jax.devices()
    return {
        "codd_jax": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
