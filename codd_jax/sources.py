"""Where a model's parts came from, as it may be published: hub ids whole, of local folders the name alone."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from codd_jax.io.workspace import read_marker

Source = dict[str, str]

PARTS = ("backbone", "circuit", "adapter")


def cite(source: str | pathlib.Path) -> Source:
    """{"hub": id} for an id on the hub, {"folder": name} for anything local; never a path."""
    path = pathlib.Path(source).expanduser()
    if not path.exists() and isinstance(source, str) and source.count("/") == 1:
        try:
            validate_repo_id(source)
            return {"hub": source}
        except HFValidationError:
            pass
    return {"folder": path.resolve().name}


def cited(value: Any) -> Source:
    """A citation as it is, a name through `cite`."""
    if isinstance(value, Mapping):
        known = {key: str(name) for key, name in value.items() if key in ("hub", "folder")}
        return cite(known["folder"]) if "folder" in known else known
    return cite(str(value))


def trace(
    backbone: str | pathlib.Path,
    folder: pathlib.Path,
    circuit: str | pathlib.Path | bool | None = None,
    adapter: str | pathlib.Path | None = None,
) -> dict[str, Source]:
    """The sources of a model's parts, the originals on the hub where a converted or saved folder names them.

    Args:
      backbone: as the user gave it; folder: where it is on this machine.
      circuit: None for the folder's own, False for none; adapter: merged in, None for none.
    """
    found = {"backbone": cite(backbone)}
    if "folder" in found["backbone"]:
        found |= _recorded(folder, "backbone")
    if circuit is not None:
        found.pop("circuit", None)
    if circuit:
        found["circuit"] = cite(circuit)
        path = pathlib.Path(circuit).expanduser()
        if path.is_dir():
            found["circuit"] = _recorded(path, "circuit").get("circuit", found["circuit"])
    if adapter is not None:
        found["adapter"] = cite(adapter)
    return found


def _recorded(folder: pathlib.Path, part: str) -> dict[str, Source]:
    """What codd.json says of the parts' origin, as far as that is on the hub."""
    marker = (read_marker(folder) if folder.is_dir() else None) or {}
    named = marker.get("sources")
    if not isinstance(named, Mapping):
        named = {part: marker.get("source"), "adapter": marker.get("adapter")}
    sources = {key: cited(value) for key, value in named.items() if key in PARTS and value}
    return {key: source for key, source in sources.items() if "hub" in source}
