"""Where arrays live on many devices: the one file that knows the mesh axes, "data" (rows) and "model" (weights)."""

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from codd_jax.backbones.config import BackboneConfig

AXES = ("data", "model")

# Parameter → which of its own axes (without the layer axis) is split over "model", and what must divide for that.
# Columns then rows, so that a block needs two all-reduces (Megatron-LM, arXiv:1909.08053).
RULES: tuple[tuple[str, tuple[str | None, ...], str], ...] = (
    (r"(embed|head)\.weight", ("model", None), "vocab_size"),
    (r"head\.bias", ("model",), "vocab_size"),
    (r"blocks\.q\.(weight|lora\.b)", ("model", None), "num_heads"),
    (r"blocks\.[kv]\.(weight|lora\.b)", ("model", None), "num_kv_heads"),
    (r"blocks\.q\.bias", ("model",), "num_heads"),
    (r"blocks\.[kv]\.bias", ("model",), "num_kv_heads"),
    (r"blocks\.o\.(weight|lora\.a)", (None, "model"), "num_heads"),
    (r"blocks\.(gate|up)\.(weight|lora\.b)", ("model", None), "ffn_width"),
    (r"blocks\.(gate|up)\.bias", ("model",), "ffn_width"),
    (r"blocks\.down\.(weight|lora\.a)", (None, "model"), "ffn_width"),
)


def make_mesh(spec: str | Mapping[str, int] | None, devices: list[jax.Device] | None = None) -> Mesh | None:
    """A mesh from "data:2,model:4" or {"data": 2, "model": 4}; an axis left out has size 1; None gives None.

    The first data*model of `devices` (default: all) are used. ValueError for unknown axes, sizes below 1 or too few
    devices.
    """
    if spec is None:
        return None
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(spec, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[: shape[0] * shape[1]])


def mesh_shape(spec: str | Mapping[str, int], count: int) -> tuple[int, int]:
    """The sizes of the axes data and model that `make_mesh` takes from `spec`; errors as there for `count` devices."""
    sizes = _parse(spec) if isinstance(spec, str) else dict(spec)
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"mesh axis {', '.join(unknown)} is unknown; the axes are {' and '.join(AXES)}")
    data, model = (int(sizes.get(axis, 1)) for axis in AXES)
    if min(data, model) < 1:
        raise ValueError(f"mesh {spec!r} has an axis below 1; each must be at least 1")
    if data * model > count:
        raise ValueError(f"mesh {spec!r} needs {data * model} devices and there are {count}; choose smaller axes")
    return data, model


def backbone_sharding(
    config: BackboneConfig, mesh: Mesh | None
) -> Callable[[tuple, tuple[int, ...]], NamedSharding] | None:
    """A function of a parameter's path and shape (either layout) to its sharding; None for no mesh.

    A parameter whose heads, channels or rows the model axis does not divide is replicated, with one warning for all.
    """
    if mesh is None:
        return None
    size = mesh.shape["model"]
    uneven = replicated_parts(config, size)
    if uneven:
        warnings.warn(
            f"the model axis of {size} does not divide {'; '.join(uneven)}: these are replicated", stacklevel=2
        )

    def sharding_of(path: tuple, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(path, len(shape), config, size))

    return sharding_of


def replicated_parts(config: BackboneConfig, size: int) -> list[str]:
    """What of a backbone a model axis of `size` does not divide, with the parameters that stay whole for it."""
    uneven = sorted({unit for _, _, unit in RULES if getattr(config, unit) % size})
    return [f"{unit} = {getattr(config, unit)} ({_governed(unit)})" for unit in uneven]


def partition_spec(path: tuple, rank: int, config: BackboneConfig, size: int) -> PartitionSpec:
    """The split of one parameter over a model axis of `size`; leading (layer) axes are never split."""
    name = ".".join(str(key) for key in path if not str(key).isdigit())
    for pattern, axes, unit in RULES:
        if re.fullmatch(pattern, name) and getattr(config, unit) % size == 0:
            return PartitionSpec(*(None,) * (rank - len(axes)), *axes)
    return PartitionSpec()


def spread_over_data(spec: PartitionSpec, shape: tuple[int, ...], size: int) -> PartitionSpec:
    """A parameter's split with the data axis of `size` on top, so that no device holds what another has (ZeRO).

    It goes to the largest of the last two axes that is not split yet and that it divides (arXiv:1910.02054); vectors
    stay as they are, and so does the layer axis, which the program runs through.
    """
    axes = [*spec, *(None,) * (len(shape) - len(spec))]
    free = [axis for axis in range(max(len(shape) - 2, 0), len(shape)) if axes[axis] is None]
    free = [axis for axis in free if shape[axis] % size == 0]
    if len(shape) < 2 or not free or size == 1:
        return spec
    axes[max(free, key=lambda axis: shape[axis])] = "data"
    return PartitionSpec(*axes)


def circuit_sharding(circuit: Any, mesh: Mesh | None) -> Any:
    """A circuit with a sharding in place of every array, as `jax.device_put` takes it; None for no mesh.

    Emissions are split over the vocabulary, as the head's logits are: the leaf product then needs one small sum over
    devices and no copy of E. They are replicated, with a warning, where the model axis does not divide V. A modulated
    circuit's basis goes with them; its heads are replicated.
    """
    if mesh is None:
        return None
    size, tokens = mesh.shape["model"], circuit.emission.shape[-1]
    if tokens % size:
        warnings.warn(
            f"the model axis of {size} does not divide the circuit's vocabulary of {tokens}: it is replicated",
            stacklevel=2,
        )
    split = PartitionSpec() if tokens % size else PartitionSpec(*(None,) * (circuit.emission.ndim - 1), "model")
    whole = NamedSharding(mesh, PartitionSpec())
    heads = jax.tree.map(lambda _: whole, circuit.modulation)
    if heads is not None and heads.basis is not None:
        heads = heads.replace(basis=NamedSharding(mesh, PartitionSpec(*(() if tokens % size else (None, "model")))))
    return circuit.replace(initial=whole, transition=whole, emission=NamedSharding(mesh, split), modulation=heads)


def batch_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of arrays whose first axis is the batch; None for no mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec("data"))


def constrain_rows(tree: Any, mesh: Mesh | None) -> Any:
    """Inside a program: arrays whose first axis is the batch, kept spread over the mesh's data axis."""
    rows = batch_sharding(mesh)
    return tree if rows is None else jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, rows), tree)


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of arrays that every device holds whole; None for no mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def _parse(spec: str) -> dict[str, int]:
    """ "data:2,model:4" → {"data": 2, "model": 4}."""
    sizes: dict[str, int] = {}
    for part in filter(None, spec.replace(" ", "").split(",")):
        axis, colon, size = part.partition(":")
        if not colon or not re.fullmatch(r"-?\d+", size) or axis in sizes:
            raise ValueError(f"mesh {spec!r} is not of the form 'data:2,model:4'")
        sizes[axis] = int(size)
    return sizes


def _governed(unit: str) -> str:
    return ", ".join(pattern.replace("\\", "") for pattern, _, rule_unit in RULES if rule_unit == unit)
