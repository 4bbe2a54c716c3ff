"""The real decoding programs from shapes alone: compiled without weights, for devices that may be absent."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh

from codd_jax.backbones import BackboneConfig, Transformer
from codd_jax.circuits import HMM
from codd_jax.decoding.canvas import Canvas, make_canvas
from codd_jax.decoding.config import DecodeConfig
from codd_jax.decoding.denoiser import BackboneDenoiser
from codd_jax.decoding.loop import run_block
from codd_jax.decoding.steps import denoise_step
from codd_jax.fitting.costs import CircuitShape
from codd_jax.sharding import backbone_sharding, batch_sharding, circuit_sharding, replicated

PROGRAMS = {"step": denoise_step, "block": run_block}
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
_COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_ARRAY = re.compile(r"(pred|bf16|f16|[sufc]\d+)\[([\d,]*)\]")
# The v4 runtime joins the two cores of a chip; without this the compiler would see sixteen halves in 2x2x2.
_JOINED_CORES = ("v4",)
# Keeps libtpu from asking a cloud about itself, and lets several processes compile at once: no TPU is touched.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A decoding program of `batch` rows of `length` positions, over the devices of `mesh`.

    Attributes:
      config: the backbone. decode: how to decode. circuit: None without one.
      batch, length: of the canvas.
      mesh: with axes data and model, see `sharding.make_mesh`; its devices may be those of `describe_topology`.
      dtype: of the backbone's weights and activations.
      layout, attention_implementation: as in `Transformer`.
    """

    config: BackboneConfig
    decode: DecodeConfig
    batch: int
    length: int
    mesh: Mesh
    circuit: CircuitShape | None = None
    dtype: Any = jnp.bfloat16
    layout: str = "stacked"
    attention_implementation: str = "auto"

    def lower(self, kind: str = "step") -> jax.stages.Lowered:
        """`decoding.denoise_step` ("step") or `decoding.run_block` ("block"), ready to be compiled.

        Kept keys and values live between the steps of a block; with `cache="prefix"` this is the last block's program.
        Raises ValueError where backbone, circuit, canvas and mesh do not fit each other.
        """
        share = self.mesh.shape["data"]
        if self.batch % share:
            raise ValueError(f"a batch of {self.batch} rows cannot be shared evenly by a data axis of {share}")
        circuit, config = self.circuit, self.config
        if circuit is not None and circuit.vocab_size != config.vocab_size:
            raise ValueError(f"the circuit is over {circuit.vocab_size} tokens, the backbone over {config.vocab_size}")
        strategy, numbers = self.decode.split(
            family=config.family,
            mask_id=config.mask_id,
            stop_ids=(config.eos_id,),
            circuit_length=None if circuit is None else circuit.length,
        )
        hmm = None if strategy.coupling == "none" else abstract_circuit(circuit, self.mesh)
        graphdef, params = self.abstract_params()
        canvas = abstract_canvas(self.batch, self.length, self.mesh)
        static = {"strays": 0}
        if kind == "block":
            static["span"] = 0 if strategy.cache == "none" else strategy.block_length
        return PROGRAMS[kind].lower(BackboneDenoiser(graphdef), params, canvas, strategy, numbers, hmm, **static)

    def lower_layer(self) -> jax.stages.Lowered:
        """One block of the backbone by itself, on [batch, length, width]: what XLA counts for it has no loop in it."""
        config = dataclasses.replace(self.config, num_layers=1)
        # XLA does not count what a kernel of somebody else's does.
        single = dataclasses.replace(self, config=config, layout="unrolled", attention_implementation="xla")
        graphdef, params = single.abstract_params()
        rows = batch_sharding(self.mesh)
        shape = (self.batch, self.length, self.config.width)
        x = jax.ShapeDtypeStruct(shape, self.dtype, sharding=rows)
        lengths = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=rows)

        def layer(params, x, lengths):
            backbone = nnx.merge(graphdef, params)
            return backbone.blocks[0](x, backbone.rotary(self.length), lengths)

        return jax.jit(layer, out_shardings=rows).lower(params, x, lengths)

    def abstract_params(self) -> tuple[nnx.GraphDef, nnx.State]:
        """The backbone's structure and its parameters as shapes with shardings."""
        options = {
            "layout": self.layout, "attention_implementation": self.attention_implementation, "mesh": self.mesh,
        }  # fmt: skip
        graphdef, state = nnx.split(Transformer.abstract(self.config, self.dtype, **options))
        sharding_of = backbone_sharding(self.config, self.mesh)

        def place(path, param):
            shape = jax.ShapeDtypeStruct(param.shape, param.dtype, sharding=sharding_of(path, param.shape))
            return path, param.replace(shape)

        return graphdef, nnx.from_flat_state([place(*item) for item in nnx.to_flat_state(state)])


def abstract_canvas(batch: int, length: int, mesh: Mesh) -> Canvas:
    """A canvas as shapes, its rows spread over the data axis."""
    canvas = jax.eval_shape(lambda: make_canvas([[0]] * batch, length - 1, 0, 0))
    rows, everywhere = batch_sharding(mesh), replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows if x.ndim else everywhere), canvas
    )


def abstract_circuit(circuit: CircuitShape, mesh: Mesh) -> HMM:
    """A circuit as shapes, its emissions spread over the model axis."""
    states, tied = circuit.num_states, circuit.tied
    emission_dtype = {2: jnp.bfloat16, 4: jnp.float32}[circuit.emission_bytes]
    hmm = HMM(
        jax.ShapeDtypeStruct((states,), jnp.float32),
        jax.ShapeDtypeStruct((*(() if tied else (circuit.length - 1,)), states, states), jnp.float32),
        jax.ShapeDtypeStruct((*(() if tied else (circuit.length,)), states, circuit.vocab_size), emission_dtype),
        length=circuit.length,
    )
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), hmm, circuit_sharding(hmm, mesh)
    )


def describe_topology(name: str) -> list[jax.Device]:
    """The devices of a TPU slice such as "v5e:2x4", to compile for; needs libtpu but no TPU.

    JAX must run on CPU (`JAX_PLATFORMS=cpu`): with libtpu installed it would look for a TPU otherwise.

    Raises:
      ModuleNotFoundError: libtpu is not installed. ValueError: no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            "compiling for a TPU needs the libtpu package; install requirements-tpu-compile.txt into an environment "
            "of its own and run there with JAX_PLATFORMS=cpu"
        )
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    options = {"chip_config_name": "megacore"} if name.partition(":")[0] in _JOINED_CORES else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name!r} is no TPU slice that libtpu knows, as v5e:2x4 or v4:2x2x2 are ({reason})"
        ) from error


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What the compiler says of a program, per device.

    Attributes:
      argument_bytes: weights, circuit and canvas. temporary_bytes: working memory. code_bytes: the program itself.
      output_bytes: what is neither an argument nor aliased with one.
      peak_bytes: of arguments, temporaries and outputs at any moment, plus the code.
      flops: as XLA counts them, with the body of a loop once and both branches of a condition.
      collectives: kind → (number in the program text, bytes of their results); None where there is no text.
    """

    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    code_bytes: int
    peak_bytes: int
    flops: float
    collectives: dict[str, tuple[int, int]] | None

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> Footprint:
        """Reads `memory_analysis`, `cost_analysis` and the text of a compiled program."""
        memory = compiled.memory_analysis()
        output = memory.output_size_in_bytes - memory.alias_size_in_bytes
        total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + output
        try:
            collectives = count_collectives(compiled.as_text())
        except jax.errors.JaxRuntimeError:  # a jaxlib that cannot print what a newer libtpu makes
            collectives = None
        # CPU's peak leaves temporaries out.
        peak = max(getattr(memory, "peak_memory_in_bytes", 0), total) + memory.generated_code_size_in_bytes
        return cls(
            argument_bytes=memory.argument_size_in_bytes,
            temporary_bytes=memory.temp_size_in_bytes,
            output_bytes=output,
            code_bytes=memory.generated_code_size_in_bytes,
            peak_bytes=peak,
            flops=float((compiled.cost_analysis() or {}).get("flops", 0.0)),
            collectives=collectives,
        )


def count_collectives(text: str) -> dict[str, tuple[int, int]]:
    """Kind of collective → (how often it stands in compiled HLO `text`, bytes of all its results together)."""
    counts: dict[str, tuple[int, int]] = {}
    for found in _COLLECTIVE.finditer(text):
        arrays = _ARRAY.findall(found[1])
        if found[3]:  # an asynchronous start carries operands, results and flags: count the results
            arrays = arrays[len(arrays) // 2 :] if found[2] != "collective-permute" else arrays[1:2]
        size = sum(_BYTES.get(kind, 4) * _product(shape) for kind, shape in arrays)
        number, total = counts.get(found[2], (0, 0))
        counts[found[2]] = (number + 1, total + size)
    return counts


def compile_program(lowered: jax.stages.Lowered) -> Footprint:
    """Compiles; MemoryError with the compiler's own figures where the program does not fit the device's memory."""
    try:
        return Footprint.of(lowered.compile())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).splitlines()[0]
        told = re.search(r"Ran out of memory.*?(?=\. |$)", said)
        raise MemoryError(told[0] if told else said) from error


def _product(shape: str) -> int:
    result = 1
    for size in filter(None, shape.split(",")):
        result *= int(size)
    return result
