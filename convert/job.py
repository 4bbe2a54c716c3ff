"""One conversion: what the command line asked for, and what SRC turned out to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from codd_jax.io import hub
from codd_jax.io.adapter_config import CONFIG as ADAPTER
from codd_jax.io.checkpoint import parts
from codd_jax.io.workspace import fingerprint, read_marker


@dataclasses.dataclass(frozen=True)
class Job:
    """What to convert into what.

    Attributes:
      source: SRC as it was given. out: OUT. found: SRC on this machine. adapter: the adapter on this machine, or None.
      backbone, circuit: what SRC holds, each a path or None.
      dtype: "bfloat16", "float32" or "keep", for a backbone's tensors.
    """

    source: str
    out: Path
    found: Path
    backbone: Path | None
    circuit: Path | None
    adapter: Path | None = None
    dtype: str = "keep"
    overwrite: bool = False
    progress: bool = True

    @classmethod
    def find(cls, source: str, out: str, *, adapter: str | None = None, access: dict[str, Any], **options: Any) -> Job:
        """Fetch what is on the hub and recognise what SRC holds.

        Raises:
          FileNotFoundError, PermissionError, ConnectionError: from the hub, or nothing is at that path.
          ValueError: SRC holds neither a backbone nor a circuit.
        """
        found = hub.resolve(source, **access)
        if (found / ADAPTER).is_file() and not any(found.glob("model*.safetensors")):
            raise ValueError(f"{source}: this is a PEFT adapter; pass it as --adapter, and its base model as SRC")
        backbone, circuit = parts(found)
        if backbone is not None and not (backbone / "config.json").is_file():
            raise ValueError(
                f"{source} holds neither a config.json (LLaDA, Dream) nor a circuit (.jpc, circuit.safetensors); "
                "see python -m convert --help for what is recognised"
            )
        adapter_at = None if adapter is None else hub.resolve(adapter, **{**access, "revision": None})
        if adapter_at is not None and backbone is None:
            raise ValueError(f"--adapter changes a backbone and {source} holds a circuit alone; leave --adapter out")
        return cls(source, Path(out), found, backbone, circuit, adapter_at, **options)

    def identity(self) -> dict[str, Any]:
        """What an interrupted run is compared by and described with; "content" tells one job from another."""
        content = fingerprint(_files(self.backbone, self.circuit, self.adapter))
        described = {"source": str(self.found), "adapter": str(self.adapter or ""), "dtype": self.dtype}
        return {**described, "content": f"{content}-{self.dtype}"}

    def provenance(self) -> dict[str, Any]:
        """What codd.json says about where the numbers come from."""
        facts = {"source": self.source, "adapter": None if self.adapter is None else str(self.adapter)}
        return {key: value for key, value in facts.items() if value}


def is_finished(folder: Path) -> bool:
    """Whether a folder of a bundle in the making is done already."""
    return read_marker(folder) is not None


def _files(*places: Path | None) -> Iterable[Path]:
    patterns = ("config.json", "adapter_config.json", "*.safetensors", "*.jpc", "circuit.json", "codd*.json")
    for place in filter(None, places):
        if place.is_file():
            yield place
            continue
        for pattern in patterns:
            yield from place.glob(pattern)
        yield from (file for file in (place / "params").rglob("*") if file.is_file())
