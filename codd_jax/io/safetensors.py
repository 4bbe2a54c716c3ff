"""Backbones from and to HuggingFace weights: a family's name table applied to a source of tensors, one at a time."""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from codd_jax.backbones.config import BackboneConfig, family_module
from codd_jax.backbones.low_rank import require_merged
from codd_jax.backbones.transformer import Transformer, choose_layout
from codd_jax.io.tensors import INDEX, SafetensorsFolder, TensorSource, write_safetensors
from codd_jax.io.workspace import write_json

__all__ = ["Placement", "SafetensorsFolder", "TensorSource", "load_backbone", "plan", "save_huggingface"]

# What readers of a folder take for its weights.
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")

# Tensors that some checkpoints carry and nothing needs: rotary tables are computed.
_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")

Path = tuple[str, ...]
ShardingOf = Callable[[tuple, tuple[int, ...]], jax.sharding.Sharding]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one checkpoint tensor goes: the parameter's path, and its layer where the parameter is in the blocks."""

    name: str
    path: Path
    layer: int | None


def plan(config: BackboneConfig, source: TensorSource) -> list[Placement]:
    """Match every tensor of `source` with a parameter of the backbone, in layer order.

    Raises one ValueError that lists together what is unmapped, missing, duplicate, mis-shaped or not floating point.
    """
    expected = expected_shapes(config)
    found: dict[tuple[Path, int | None], str] = {}
    problems: dict[str, list[str]] = {"unmapped": [], "missing": [], "duplicate": [], "mis-shaped": [], "not float": []}
    for name in sorted(source.names()):
        target = _target(config, name)
        if _IGNORED.fullmatch(name) or (config.tie_embeddings and target == (("head", "weight"), None)):
            continue
        if target not in expected:
            problems["unmapped"].append(name)
        elif target in found:
            problems["duplicate"].append(f"{name} and {found[target]}")
        else:
            found[target] = name
            if source.shape(name) != expected[target]:
                problems["mis-shaped"].append(f"{name} is {source.shape(name)}, the config asks for {expected[target]}")
            if not jnp.issubdtype(source.dtype(name), jnp.floating):
                problems["not float"].append(f"{name} is {source.dtype(name)} (quantised checkpoints are not read)")
    problems["missing"] = [checkpoint_name(config, *target) for target in expected if target not in found]
    listed = [f"{kind} ({len(items)}): {_first(items)}" for kind, items in problems.items() if items]
    if listed:
        where = source.origin(next(iter(source.names()), ""))
        raise ValueError(
            f"{where}: the tensors do not fit the config ({config.family}, {config.num_layers} layers of width "
            f"{config.width}, vocabulary {config.vocab_size}):\n  " + "\n  ".join(listed)
        )
    order = sorted(found, key=lambda target: (-1 if target[1] is None else target[1], target[0]))
    return [Placement(found[target], *target) for target in order]


def load_backbone(
    source: TensorSource | str | pathlib.Path,
    config: BackboneConfig,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
    sharding: ShardingOf | jax.sharding.Sharding | None = None,
    layout: str = "stacked",
    attention_implementation: str = "auto",
    mesh: jax.sharding.Mesh | None = None,
    progress: bool = True,
) -> Transformer:
    """Build a Transformer from HuggingFace tensors, streaming one tensor at a time to the device(s).

    `dtype` is computed in, `param_dtype` (default: the same) stored. `sharding` is one Sharding for all parameters or
    a function of a parameter's path and shape in the chosen layout (see `codd_jax.sharding.backbone_sharding`); each
    device then reads only its part. `layout`, `attention_implementation` and `mesh` (default: that of `sharding`) are
    for `Transformer`. The host never holds more than one tensor. Errors as `plan` and the source raise.
    """
    source = SafetensorsFolder(source) if isinstance(source, str | pathlib.Path) else source
    if hasattr(source, "in_dtype"):
        source = source.in_dtype(param_dtype or dtype)
    placements = plan(config, source)
    layout, stored = choose_layout(config, layout), jnp.dtype(param_dtype or dtype)
    shapes = expected_shapes(config)
    sharding_of = sharding if callable(sharding) else lambda path, shape: sharding
    arrays: dict[tuple, jax.Array] = {}
    total = sum(math.prod(shapes[p.path, p.layer]) * source.dtype(p.name).itemsize for p in placements)
    with tqdm(total=total, desc="loading", unit="B", unit_scale=True, disable=not progress) as bar:
        for item in placements:
            shape = shapes[item.path, item.layer]
            if item.layer is None or layout == "unrolled":
                path = item.path if item.layer is None else ("blocks", item.layer, *item.path[1:])
                arrays[path] = _cast(_place(source, item.name, sharding_of(path, shape)), stored)
            else:
                stacked = (config.num_layers, *shape)
                target = sharding_of(item.path, stacked)
                if item.path not in arrays:
                    arrays[item.path] = jnp.zeros(stacked, stored, device=target)
                value = _place(source, item.name, _without_layer_axis(target))
                path = item.path
                arrays[path] = _slice_writer(target)(arrays[path], value, item.layer)
            arrays[path].block_until_ready()  # else host copies of many tensors wait for their transfers at once
            bar.update(math.prod(shape) * source.dtype(item.name).itemsize)
    if mesh is None and sharding is not None:
        placed = next(iter(arrays.values())).sharding
        mesh = placed.mesh if isinstance(placed, jax.sharding.NamedSharding) else None
    options = {"layout": layout, "attention_implementation": attention_implementation, "mesh": mesh}
    options["param_dtype"] = stored
    return Transformer.from_params(config, _nest(arrays), dtype, **options)


def save_huggingface(
    backbone: Transformer,
    config: BackboneConfig | None,
    folder: str | pathlib.Path,
    *,
    config_json: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    progress: bool = False,
) -> list[pathlib.Path]:
    """Write a backbone under HuggingFace's tensor names, with config.json; returns the weight files.

    Tensors keep their stored dtype and leave the device one by one; beyond `max_shard_bytes` they are split into
    shards with an index. `config_json` is written in place of the config.json that the family's reader would accept.
    A model that lies in `folder` already is replaced with all its shards; interrupted, no loadable mixture is left.
    ValueError for a backbone with LoRA factors, which have no place in it.
    """
    require_merged(backbone)
    config, folder = config or backbone.config, pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    params = dict(nnx.to_flat_state(nnx.state(backbone, nnx.Param)))
    readers = {}
    for (path, layer), shape in expected_shapes(config).items():
        stacked = layer is not None and backbone.layout == "stacked"
        key = path if layer is None or stacked else ("blocks", layer, *path[1:])
        readers[checkpoint_name(config, path, layer)] = (params[key][...], layer if stacked else None, shape)

    def read(name: str) -> np.ndarray:
        array, layer, _ = readers[name]
        bar.update()
        return np.asarray(array if layer is None else array[layer])

    shards: list[dict[str, tuple[np.dtype, tuple[int, ...]]]] = [{}]
    size = 0
    for name, (array, _, shape) in readers.items():
        count = math.prod(shape) * array.dtype.itemsize
        if shards[-1] and size + count > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = (np.dtype(array.dtype), shape)
        size += count
    written = config_json or family_module(config.family).write_config(config)
    single = len(shards) == 1
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    files = ["model.safetensors"] if single else files
    for name in ("config.json", INDEX):
        (folder / name).unlink(missing_ok=True)
    with tqdm(total=len(readers), desc="writing", unit="tensor", disable=not progress) as bar:
        for file, specs in zip(files, shards, strict=True):
            write_safetensors(folder / file, specs, read)
    for file in folder.glob("model*.safetensors"):
        if _WEIGHTS.fullmatch(file.name) and file.name not in files:
            file.unlink()
    if not single:
        weight_map = {name: file for file, specs in zip(files, shards, strict=True) for name in specs}
        total = sum(array.dtype.itemsize * math.prod(shape) for array, _, shape in readers.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(folder / "config.json", dict(written))
    return [folder / file for file in files]


@functools.lru_cache(maxsize=8)
def expected_shapes(config: BackboneConfig) -> dict[tuple[Path, int | None], tuple[int, ...]]:
    """Shape of every checkpoint tensor by (path, layer); `blocks` parameters count once a layer."""
    shapes: dict[tuple[Path, int | None], tuple[int, ...]] = {}
    for path, param in nnx.to_flat_state(nnx.state(Transformer.abstract(config), nnx.Param)):
        if path[0] == "blocks":
            shapes |= {(path, layer): tuple(param.shape[1:]) for layer in range(config.num_layers)}
        else:
            shapes[path, None] = tuple(param.shape)
    return shapes


@functools.lru_cache(maxsize=4)
def _patterns(family: str) -> list[tuple[re.Pattern, Path]]:
    """The family's name table as regular expressions."""
    table = family_module(family).NAMES
    return [
        (
            re.compile(re.escape(name).replace(r"\{layer\}", r"(?P<layer>\d+)") + r"\.(?P<leaf>weight|bias)"),
            tuple(to.split(".")),
        )
        for name, to in table.items()
    ]


def _target(config: BackboneConfig, name: str) -> tuple[Path, int | None] | None:
    """The parameter path and layer that a checkpoint name stands for, or None."""
    for pattern, path in _patterns(config.family):
        if match := pattern.fullmatch(name):
            layer = match.groupdict().get("layer")
            return (*path, match["leaf"]), None if layer is None else int(layer)
    return None


def checkpoint_name(config: BackboneConfig, path: Path, layer: int | None) -> str:
    """The checkpoint's name for a parameter; the way back of `_target`."""
    module = ".".join(path[:-1])
    name = next(name for name, to in family_module(config.family).NAMES.items() if to == module)
    return f"{name.format(layer=layer)}.{path[-1]}"


def _place(source: TensorSource, name: str, sharding: jax.sharding.Sharding | None) -> jax.Array:
    """One tensor on the device(s), in its stored dtype (float64 as float32); each shard reads its own part only."""

    def narrow(array: np.ndarray) -> np.ndarray:
        return array.astype(np.float32) if array.dtype == np.float64 else array

    if hasattr(source, "place"):
        return source.place(name, sharding)
    if sharding is None or len(sharding.device_set) == 1:
        return jax.device_put(narrow(source.read(name)), sharding)
    whole = None if hasattr(source, "read_slice") else source.read(name)
    parts: dict[tuple, np.ndarray] = {}  # replicas ask for the same part

    def part(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple((s.start, s.stop) for s in index)
        if key not in parts:
            parts[key] = narrow(source.read_slice(name, index) if whole is None else whole[index])
        return parts[key]

    return jax.make_array_from_callback(source.shape(name), sharding, part)


def _without_layer_axis(sharding: jax.sharding.Sharding | None) -> jax.sharding.Sharding | None:
    """The sharding of one layer's slice of a stacked parameter."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))
    return sharding


@functools.lru_cache(maxsize=32)
def _slice_writer(sharding: jax.sharding.Sharding | None) -> Callable[..., jax.Array]:
    """A jitted function that writes one layer into a stacked parameter, in place."""

    def write(stacked: jax.Array, value: jax.Array, layer: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stacked, value.astype(stacked.dtype), layer, 0)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _cast(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return array if array.dtype == dtype else array.astype(dtype)


def _nest(flat: Mapping[tuple, Any]) -> dict[Any, Any]:
    nested: dict[Any, Any] = {}
    for path, value in flat.items():
        inner = nested
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return nested


def _first(items: list[str], limit: int = 8) -> str:
    rest = f"; and {len(items) - limit} more" if len(items) > limit else ""
    return "; ".join(items[:limit]) + rest
