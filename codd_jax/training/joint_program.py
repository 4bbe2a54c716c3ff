"""The real programs of training from shapes alone: compiled without weights, for devices that may be absent."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh

from codd_jax.backbones import BackboneConfig, Transformer
from codd_jax.circuits import HMM
from codd_jax.fitting.costs import CircuitShape, Split
from codd_jax.sharding import AXES, batch_sharding, replicated
from codd_jax.training.circuit_step import make_step
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.joint_parts import Structure, param_shardings, take_apart
from codd_jax.training.joint_rows import RowBatch
from codd_jax.training.joint_step import JointState, compiled_update, first_state, places
from codd_jax.training.potentials import Head, WindowPotentials
from codd_jax.training.rows import Rows
from codd_jax.training.rules import make_rule


@dataclasses.dataclass(frozen=True)
class JointProgram:
    """An update of joint fine-tuning.

    Attributes:
      config: the backbone. training: the recipe, whose `dtype` is that of the computation.
      circuit: None for the factorised objective.
      length: positions of a row. windows: windows of a row.
      layout, attention_implementation, mesh: as in `Transformer`.
    """

    config: BackboneConfig
    training: JointTraining
    circuit: CircuitShape | None
    length: int
    windows: int
    layout: str = "stacked"
    attention_implementation: str = "auto"
    mesh: Mesh | None = None

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The update, ready to be compiled for the devices of a mesh."""
        structure, state, frozen = dataclasses.replace(self, mesh=mesh).parts
        training = self.training
        state = _with(state, places(state, structure, training, mesh))
        frozen = _with(frozen, param_shardings(frozen, self.config, mesh, training.shard_over_data))
        batch, window = training.batch_size, self.circuit.length if self.circuit else 32
        rows = Rows(
            tokens=jax.ShapeDtypeStruct((batch, self.length), jnp.int32),
            prompt_lengths=jax.ShapeDtypeStruct((batch,), jnp.int32),
            lengths=jax.ShapeDtypeStruct((batch,), jnp.int32),
            window=window,
        )
        rows = RowBatch(rows, jax.ShapeDtypeStruct((batch, self.windows), jnp.int32))
        rows = _with(rows, jax.tree.map(lambda _: batch_sharding(mesh), rows))
        return compiled_update.lower(state, frozen, rows, structure, training.program(), mesh)

    def lower_layer(self, mesh: Mesh) -> jax.stages.Lowered:
        """One block's part of the gradient by itself, without rematerialisation: XLA counts no loop in it."""
        single = dataclasses.replace(
            self, config=dataclasses.replace(self.config, num_layers=1), layout="unrolled",
            training=dataclasses.replace(self.training, remat=False), attention_implementation="xla", mesh=mesh,
        )  # fmt: skip
        structure, state, frozen = single.parts
        params = _with(state.params, param_shardings(state.params, single.config, mesh))
        frozen = _with(frozen, param_shardings(frozen, single.config, mesh))
        rows = batch_sharding(mesh)
        batch = self.training.batch_size // self.training.accumulate
        dtype = jnp.dtype(self.training.dtype or jnp.float32)
        x = jax.ShapeDtypeStruct((batch, self.length, self.config.width), dtype, sharding=rows)
        lengths = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows)

        def layer(params: Any, frozen: Any, x: jax.Array, lengths: jax.Array, above: jax.Array) -> Any:
            def forward(params: Any, x: jax.Array) -> jax.Array:
                backbone = structure.backbone(params, frozen)
                return backbone.blocks[0](x, backbone.rotary(self.length), lengths)

            y, pull = jax.vjp(forward, params, x)
            return y, pull(above)

        return jax.jit(layer).lower(params, frozen, x, lengths, x)

    @functools.cached_property
    def parts(self) -> tuple[Structure, JointState, dict[str, Any]]:
        """The structure, and the state and what is frozen as shapes."""
        found: list[Structure] = []

        def build() -> tuple[JointState, dict[str, Any]]:
            training = self.training
            # All weights are read in the dtype they are trained in; frozen ones in that of the computation.
            stored = training.param_dtype if training.train == "full" else training.dtype
            backbone = Transformer(
                self.config, dtype=training.dtype, param_dtype=stored, layout=self.layout,
                attention_implementation=self.attention_implementation, mesh=self.mesh, rngs=nnx.Rngs(0),
            )  # fmt: skip
            structure, params, frozen = take_apart(backbone, _circuit(self.circuit), training)
            found.append(structure)
            return first_state(params, training), frozen

        state, frozen = jax.eval_shape(build)
        return found[0], state, frozen

    def state_bytes(self, split: Split) -> dict[str, int]:
        """Bytes on one device: "weights" that are trained, "optimiser", "frozen" weights, and the "gradients"."""
        structure, state, frozen = self.parts
        mesh = AbstractMesh((split.data, split.model), AXES, axis_types=(AxisType.Auto,) * 2)
        where = places(state, structure, self.training, mesh)
        frozen_where = param_shardings(frozen, self.config, mesh, self.training.shard_over_data)
        weights = shard_bytes(state.params, where.params)
        return {
            "weights": weights,
            "optimiser": shard_bytes(state.opt_state, where.opt_state),
            "frozen": shard_bytes(frozen, frozen_where),
            "gradients": weights,
        }


@dataclasses.dataclass(frozen=True)
class CircuitProgram:
    """A step of circuit training on stored hidden states, over all devices of a mesh.

    Attributes:
      config: the backbone, of which only the head takes part. circuit: what is trained.
      rule: a key of `rules.RULES`. batch: windows of a step. chunk: windows a device works on at a time.
      dtype: of the head and the states.
    """

    config: BackboneConfig
    circuit: CircuitShape
    rule: str
    batch: int
    chunk: int | None = None
    dtype: str = "bfloat16"

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The step, ready to be compiled."""
        rule, config, length = make_rule(self.rule), self.config, self.circuit.length
        hmm = jax.eval_shape(lambda: _circuit(self.circuit))
        if self.rule == "dual_ratio":
            hmm = hmm.replace(normalization="local")
        state = jax.eval_shape(rule.init, hmm)
        everywhere = replicated(mesh)
        state = _with(state, jax.tree.map(lambda _: everywhere, state))
        weight = jax.ShapeDtypeStruct((config.vocab_size, config.width), self.dtype, sharding=everywhere)
        windows = WindowPotentials(
            jax.ShapeDtypeStruct((self.batch, length, config.width), self.dtype),
            jax.ShapeDtypeStruct((self.batch, length), jnp.int32),
            jax.ShapeDtypeStruct((self.batch, length), jnp.bool_),
            jax.ShapeDtypeStruct((self.batch,), jnp.float32),
        )
        windows = _with(windows, jax.tree.map(lambda _: jax.NamedSharding(mesh, jax.P(AXES)), windows))
        scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
        return make_step(rule, mesh, self.chunk).lower(state, Head(weight, None, 1.0, self.dtype), windows, scale)


def shard_bytes(tree: Any, shardings: Any) -> int:
    """Bytes on one device of arrays (shapes) that lie so."""
    total = 0
    for x, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            total += math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return total


def _circuit(shape: CircuitShape | None) -> HMM | None:
    """A circuit of zeros; used for its shapes."""
    if shape is None:
        return None
    states, tied = shape.num_states, shape.tied
    return HMM(
        jnp.zeros((states,)),
        jnp.zeros((*(() if tied else (shape.length - 1,)), states, states)),
        jnp.zeros((*(() if tied else (shape.length,)), states, shape.vocab_size)),
        length=shape.length,
    )


def _with(tree: Any, shardings: Any) -> Any:
    """Shapes with shardings."""
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings)
