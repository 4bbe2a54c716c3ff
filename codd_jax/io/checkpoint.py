"""Backbones on disk: converted folders (Orbax) written tensor by tensor, and one door for every layout there is.

A converted folder holds codd.json (written last), the original config.json and tokenizer files, and params/: an Orbax
checkpoint with one array per tensor, a layer each, under the names of the original checkpoint. A layer's arrays can be
restored into stacked and into unrolled blocks alike, each device reading only its part.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from codd_jax.backbones.config import BackboneConfig, config_from_huggingface
from codd_jax.backbones.transformer import Transformer
from codd_jax.io import hub, safetensors
from codd_jax.io.arrays import ArrayStore
from codd_jax.io.lora import MergedSource
from codd_jax.io.tensors import SafetensorsFolder, TensorSource
from codd_jax.io.workspace import read_marker
from codd_jax.jsonfile import read_json
from codd_jax.sharding import backbone_sharding

PARAMS = "params"


@dataclasses.dataclass(frozen=True)
class OpenBackbone:
    """A backbone whose configuration and tensor names have been checked, and whose weights have not been read.

    Attributes:
      config: the configuration. folder: where config.json and tokenizer lie. source: the tensors.
    """

    config: BackboneConfig
    folder: Path
    source: TensorSource

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files lie."""
        return self.folder

    def load(
        self,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = None,
        mesh: jax.sharding.Mesh | None = None,
        sharding: safetensors.ShardingOf | jax.sharding.Sharding | None = None,
        layout: str = "stacked",
        attention_implementation: str = "auto",
        progress: bool = True,
    ) -> Transformer:
        """Read the weights tensor by tensor, straight into their place; options as `io.safetensors.load_backbone`.

        With `mesh` the weights are spread as `codd_jax.sharding` says; `sharding` overrides it.
        """
        if sharding is None and mesh is not None:
            sharding = backbone_sharding(self.config, mesh)
        return safetensors.load_backbone(
            self.source,
            self.config,
            dtype=dtype,
            param_dtype=param_dtype,
            sharding=sharding,
            layout=layout,
            attention_implementation=attention_implementation,
            mesh=mesh,
            progress=progress,
        )


def open_backbone(source: str | Path, *, adapter: str | Path | None = None, **access: Any) -> OpenBackbone:
    """Open a hub id, a HuggingFace folder, a converted folder or a bundle, with a PEFT LoRA adapter merged in or not.

    Args:
      source: where the backbone is. adapter: a PEFT LoRA folder or hub id.
      **access: revision, token, cache_dir, local_files_only, as `io.hub.resolve`.

    Raises:
      ValueError: another architecture, tensors that do not fit the configuration, an unfinished conversion.
      FileNotFoundError, PermissionError, ConnectionError: something is not there or cannot be had.
    """
    folder = parts(hub.resolve(source, **access))[0]
    if folder is None:
        raise ValueError(f"{source} holds a circuit and no backbone; pass it as circuit=")
    config = config_from_huggingface(folder)
    tensors: TensorSource = SafetensorsFolder(folder) if read_marker(folder) is None else ArrayStore(folder / PARAMS)
    if adapter is not None:
        tensors = MergedSource(tensors, hub.resolve(adapter, **{**access, "revision": None}))
    used = {item.name for item in safetensors.plan(config, tensors)}
    if adapter is not None and (idle := sorted(tensors.changed() - used)):
        raise ValueError(
            f"{adapter} changes {', '.join(idle[:4])}, which {source} does not use: its head is tied to its embedding; "
            "merge the adapter with PEFT into an untied checkpoint first"
        )
    return OpenBackbone(config, folder, tensors)


def load_backbone(source: str | Path, *, adapter: str | Path | None = None, **options: Any) -> Transformer:
    """`open_backbone(source, adapter=adapter).load(**options)`."""
    return open_backbone(source, adapter=adapter).load(**options)


def parts(folder: str | Path) -> tuple[Path | None, Path | None]:
    """(backbone, circuit) of a local folder: a bundle, one of the two alone, or a PyTorch-CoDD unified folder.

    Raises:
      ValueError: an unfinished conversion, or a codd.json that is not understood.
    """
    folder = Path(folder)
    marker = read_marker(folder)
    if marker is not None:
        kind = marker["kind"]
        if kind == "bundle":
            return folder / "backbone", folder / "circuit" if (folder / "circuit").is_dir() else None
        return (folder, None) if kind == "backbone" else (None, folder)
    if folder.name.endswith(".partial") or (folder / "job.json").is_file():
        raise ValueError(f"{folder} is an interrupted conversion; run the same command again to finish it")
    if folder.is_file():
        return (None, folder) if folder.suffix == ".jpc" else (folder, None)
    circuits = [folder / name for name in ("pc_model.jpc", "model.jpc") if (folder / name).is_file()]
    own = circuits[0] if circuits else None
    if own is None and (folder / "circuit.json").is_file():
        own = folder
    return (folder if (folder / "config.json").is_file() or own is None else None), own


def decode_defaults(folder: str | Path) -> dict[str, Any]:
    """Decoding settings that were published with a model, under `DecodeConfig`'s names; empty where there are none."""
    folder = Path(folder)
    marker = read_marker(folder) if folder.is_dir() else None
    if marker is not None:
        return dict(marker.get("decoding") or {})
    path = folder / "codd_config.json"
    return codd_defaults(path) if path.is_file() else {}


def codd_defaults(path: str | Path) -> dict[str, Any]:
    """The decoding settings of PyTorch-CoDD's codd_config.json under `DecodeConfig`'s names (num_steps → steps)."""
    content = read_json(path)
    names = ("gen_length", "block_length", "temperature", "cfg_scale", "remasking", "pc_temperature", "pc_frac")
    found = {"steps": content.get("num_steps"), **{name: content.get(name) for name in (*names, "reverse_frac")}}
    return {name: value for name, value in found.items() if value is not None}
