"""A model taken apart into what is trained and what is not, and where both lie on many devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from codd_jax.backbones import BackboneConfig, Transformer
from codd_jax.backbones.low_rank import has_lora
from codd_jax.circuits import HMM
from codd_jax.sharding import circuit_sharding, partition_spec, replicated, spread_over_data
from codd_jax.training.circuit import CircuitLogits
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.lora import add_lora

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Structure:
    """What puts parameters together again; hashable, so that programs are compiled once.

    Attributes:
      graphdef: of the backbone. config: its sizes.
      length, normalization: of the circuit; None where there is none.
    """

    graphdef: nnx.GraphDef
    config: BackboneConfig
    length: int | None
    normalization: str | None

    def backbone(self, params: Mapping[str, Any], frozen: Mapping[str, Any]) -> Transformer:
        """The backbone of trained and frozen arrays by name."""
        flat = {**frozen["backbone"], **params.get("backbone", {})}
        paths = {
            tuple(int(part) if part.isdigit() else part for part in name.split(".")): x for name, x in flat.items()
        }
        return nnx.merge(self.graphdef, nnx.State(unflatten_dict(paths)))

    def circuit(self, params: Mapping[str, Any], frozen: Mapping[str, Any]) -> HMM | None:
        """The circuit, None where there is none."""
        if "circuit" not in params:
            return frozen["circuit"]
        hmm = params["circuit"].to_hmm(self.length, self.normalization)
        modulation = params.get("modulation")
        return hmm if modulation is None else hmm.replace(modulation=modulation)


def take_apart(
    backbone: Transformer, hmm: HMM | None, config: JointTraining, mesh: Mesh | None = None, consume: bool = False
) -> tuple[Structure, dict[str, Any], dict[str, Any]]:
    """The structure, what is trained and what is not.

    Args:
      backbone, hmm: where training starts; neither is changed. LoRA factors are added where the config asks for them.
      config: what is trained.
      mesh: where given, trained and frozen arrays are placed on it (`codd_jax.sharding`).
      consume: what is trained may be the given arrays themselves, which updates then destroy.

    Returns:
      The structure, and two dicts of "backbone" (arrays by dotted name) and, where they are trained or there are any,
      "circuit" and "modulation".

    Raises:
      ValueError: the head alone of a backbone whose head is its embedding, LoRA factors that are there already, or
        nothing to train.
    """
    if has_lora(backbone):
        raise ValueError("the backbone has LoRA factors already; merge them first (backbones.low_rank.merge_lora)")
    prepared = _prepare(backbone, config, mesh)
    if config.train == "lora":
        prepared = add_lora(
            prepared, config.lora, jax.random.key(config.seed), param_dtype=config.param_dtype, mesh=mesh
        )
    graphdef, state = nnx.split(prepared)
    named = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    trained = trained_names(backbone.config, named, config.train)
    params: dict[str, Any] = {}
    if trained:
        params["backbone"] = {name: named[name][...].astype(config.param_dtype) for name in sorted(trained)}
    frozen = {"backbone": {name: leaf[...] for name, leaf in named.items() if name not in trained}, "circuit": hmm}
    if hmm is not None and config.train_circuit and config.objective == "coupled":
        params["circuit"], frozen["circuit"] = CircuitLogits.of(hmm), None
        if hmm.modulation is not None:
            params["modulation"] = hmm.modulation
    if not params:
        raise ValueError("nothing is trained: the backbone is frozen and there is no circuit to train")
    structure = Structure(
        graphdef, backbone.config, None if hmm is None else hmm.length, None if hmm is None else hmm.normalization
    )
    if not consume:  # updates reuse the memory of what they get
        params = jax.tree.map(jnp.copy, params)
    if mesh is not None:
        params = jax.device_put(params, param_shardings(params, backbone.config, mesh, config.shard_over_data))
        frozen = jax.device_put(frozen, param_shardings(frozen, backbone.config, mesh, config.shard_over_data))
    return structure, params, frozen


def trained_names(config: BackboneConfig, named: Mapping[str, Any], train: str) -> set[str]:
    """The names among the backbone's parameters that a way of training changes; ValueError for a tied head alone."""
    if train == "none":
        return set()
    if train == "full":
        return set(named)
    if train == "lora":
        return {name for name in named if ".lora." in name}
    if config.tie_embeddings:
        raise ValueError(
            "the head of this backbone is its embedding and cannot be trained alone; choose train='lora' or 'full'"
        )
    return {name for name in named if name.startswith("head.")}


def param_shardings(tree: Any, config: BackboneConfig, mesh: Mesh, over_data: bool = False) -> Any:
    """Shardings of a dict of "backbone", "circuit" and "modulation", trained or not, over the axes of `mesh`."""
    size, data = mesh.shape["model"], mesh.shape["data"]
    shardings: dict[str, Any] = {}

    def place(spec: PartitionSpec, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, spread_over_data(spec, shape, data) if over_data else spec)

    for part, value in tree.items():
        if part == "backbone":
            shardings[part] = {
                name: place(partition_spec(tuple(name.split(".")), len(x.shape), config, size), x.shape)
                for name, x in value.items()
            }
        elif value is None:
            shardings[part] = None
        elif part == "circuit":
            # `circuit_sharding` reads shapes and names alone, which logits share with probabilities.
            plain = HMM(value.initial, value.transition, value.emission, length=1)
            placed = circuit_sharding(plain, mesh)
            parts = {
                name: place(getattr(placed, name).spec, getattr(value, name).shape)
                for name in ("initial", "transition", "emission")
            }
            rest = jax.tree.map(lambda _: replicated(mesh), value)
            shardings[part] = rest.replace(**parts)
        else:
            shardings[part] = jax.tree.map(lambda _: replicated(mesh), value)
    return shardings


def state_shardings(state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of an optimiser's state: what stands for a parameter lies where it lies, the rest everywhere."""
    known: dict[tuple[str, ...], tuple[tuple[int, ...], NamedSharding]] = {}
    for (path, x), place in zip(
        jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(shardings), strict=True
    ):
        known[tuple(map(str, path))] = (tuple(x.shape), place)

    def place(path: tuple, leaf: Any) -> NamedSharding:
        keys = tuple(map(str, path))
        for first in range(len(keys)):
            shape, sharding = known.get(keys[first:], (None, None))
            if shape == tuple(leaf.shape):
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, state)


def _prepare(backbone: Transformer, config: JointTraining, mesh: Mesh | None) -> Transformer:
    """The same weights in a backbone that computes in the config's dtype, with or without rematerialisation."""
    params = unflatten_dict({path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(backbone, nnx.Param))})
    dtype = jnp.dtype(config.dtype or backbone.dtype)
    options = {**backbone.options, "remat": config.remat, "mesh": backbone.mesh if mesh is None else mesh}
    return Transformer.from_params(backbone.config, params, dtype, layout=backbone.layout, **options)


def count(tree: Any) -> int:
    """The number of values in all arrays of a tree."""
    return sum(x.size for x in jax.tree.leaves(tree))


def flat(tree: Any) -> dict[str, Any]:
    """Any tree as one dict from readable names to leaves, as checkpoints keep it."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
