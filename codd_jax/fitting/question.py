"""Does a model fit on these devices, and what does a step cost there: estimates and the compiler's word."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax

from codd_jax.backbones.attention import choose_implementation
from codd_jax.backbones.config import BackboneConfig, check_length
from codd_jax.decoding import DecodeConfig
from codd_jax.decoding.proposals import CHUNK
from codd_jax.fitting import chips, costs, planning, programs
from codd_jax.sharding import make_mesh, mesh_shape


@dataclasses.dataclass(frozen=True)
class Question:
    """What is to be fitted where.

    Attributes:
      label: of the backbone, for people. config: its sizes. circuit: None without one.
      batch: rows decoded together. length: positions of a row.
      block_length, coupling, cache: as in `DecodeConfig`; cache is "none" or "dual", which is the block's program.
      dtype: of the weights; None: bfloat16, on a CPU float32.
      program: "step" or "block", see `programs.PROGRAMS`. attention: as `Transformer`'s attention_implementation.
      topology: a TPU slice such as "v5e:2x4"; None: the devices at hand.
      mesh: as `make_mesh` reads it; None: the fastest that fits.
      compile: whether to ask the compiler, too.
    """

    label: str
    config: BackboneConfig
    circuit: costs.CircuitShape | None
    batch: int = 1
    length: int = 768
    block_length: int = 32
    coupling: str = "latent"
    cache: str = "none"
    dtype: str | None = None
    program: str = "step"
    attention: str = "auto"
    topology: str | None = None
    mesh: str | None = None
    compile: bool = True


@dataclasses.dataclass(frozen=True)
class Place:
    """Where: the devices (none where nothing will be compiled), how many, what kind, the bytes and backend of each."""

    devices: list[jax.Device]
    number: int
    kind: str
    chip: chips.Chip | None
    memory: int | None
    backend: str

    @property
    def cpu(self) -> bool:
        return bool(self.devices) and self.devices[0].platform == "cpu"


def answer(question: Question) -> dict[str, Any]:
    """The report, ready for JSON; bytes are per device, times in seconds, `fits` None where memory is not known.

    Raises ValueError where the parts of the question contradict each other, ModuleNotFoundError without libtpu.
    """
    config, circuit = question.config, question.circuit
    check_length(config, question.length)
    place = find_place(question.topology, question.compile)
    dtype = question.dtype or ("float32" if place.cpu else "bfloat16")
    kernel = choose_implementation(question.attention, dtype, config.head_dim, place.backend)
    shape = dataclasses.replace(_step_shape(question, dtype), fused_attention=kernel != "xla")
    meshes = planning.rank_meshes(config, shape, circuit, place.number, place.memory, place.chip)
    split = read_split(question.mesh, question.batch, place.number) if question.mesh else meshes[0].split
    chosen = planning.estimate(config, shape, circuit, split, place.memory, place.chip)
    enough = None if place.memory is None else planning.devices_needed(config, shape, circuit, place.memory)
    report = {
        "name": "-".join([question.label, place.kind, f"{split.data}x{split.model}", f"batch{question.batch}"]),
        "backbone": question.label,
        "weights": config.num_params,
        "dtype": dtype,
        "circuit": None if circuit is None else dataclasses.asdict(circuit),
        "coupling": question.coupling if circuit else "none",
        "cache": question.cache,
        "batch": question.batch,
        "length": question.length,
        "devices": place.number,
        "chip": place.kind,
        "memory_bytes": place.memory,
        "mesh": chosen.spec,
        "fits": None if place.memory is None else chosen.fits,
        "weight_bytes": costs.parameter_bytes(config, shape.value_bytes, split),
        "circuit_bytes": costs.circuit_bytes(circuit, split) if circuit else 0,
        "estimate_bytes": chosen.bytes,
        "parts": timed_parts(costs.step_costs(config, shape, circuit, split), place.chip),
        "floors": _floors(config, shape, circuit, split, place.chip),
        "meshes": [
            {"mesh": each.spec, "bytes": each.bytes, "fits": each.fits, "seconds": each.seconds} for each in meshes
        ],
        "suggested_mesh": meshes[0].spec if meshes[0].fits else None,
        "devices_needed": None if enough is None else enough.split.data * enough.split.model,
    }
    report["name"] = report["name"].replace(":", "-").replace(" ", "-")
    said = {"compiled": None, "layer": None, "compiler": None}
    return report | said | (_compile(question, place, shape, split, dtype, kernel) if question.compile else {})


def find_place(topology: str | None, compiling: bool) -> Place:
    """The devices at hand, or those of a TPU slice; ValueError for no such slice, ModuleNotFoundError for no libtpu."""
    if topology is None:
        devices = jax.devices()
        kind = devices[0].device_kind
        return Place(
            devices, len(devices), kind, chips.find_chip(kind), chips.memory_of(devices[0]), devices[0].platform
        )
    chip, number = chips.find_slice(topology)
    devices = []
    if compiling:
        # With libtpu installed JAX would look for a TPU; only its compiler is wanted.
        jax.config.update("jax_platforms", "cpu")
        devices = programs.describe_topology(topology)
    return Place(devices, number, topology, chip, chip.memory_bytes, "tpu")


def _step_shape(question: Question, dtype: str) -> costs.StepShape:
    circuit = question.circuit
    # A whole canvas is ranked in pieces; a step with a circuit looks at one window.
    ranked = min(question.block_length, CHUNK) if circuit is None else circuit.length
    draws = 1 if circuit is not None and question.coupling == "any_order" else None
    size = 4 if dtype == "float32" else 2
    # Dream's logits lie one position to the left.
    computed = question.block_length + question.config.shift_logits if question.cache == "dual" else question.length
    ranked, computed = min(ranked, question.length), min(computed, question.length)
    return costs.StepShape(question.batch, question.length, ranked, computed, size, draws)


def read_split(spec: str, batch: int, number: int) -> costs.Split:
    """A mesh's sizes; ValueError where it needs more devices than `number` or does not divide the batch."""
    split = costs.Split(*mesh_shape(spec, number))
    if batch % split.data:
        raise ValueError(
            f"mesh {spec!r} spreads rows over {split.data} devices, which does not divide a batch of {batch}"
        )
    return split


def timed_parts(step: dict[str, costs.Cost], chip: chips.Chip | None) -> dict[str, Any]:
    """Costs for JSON, with the floors of each where the chip is known."""
    parts: dict[str, Any] = {}
    for name, cost in step.items():
        parts[name] = {"flops": cost.flops, "bytes": cost.bytes}
        if chip is not None:
            parts[name] |= dict(zip(("arithmetic", "memory"), cost.seconds(chip), strict=True))
    return parts


def _floors(config, shape, circuit, split, chip: chips.Chip | None) -> dict[str, float] | None:
    if chip is None:
        return None
    found = costs.floors(costs.step_costs(config, shape, circuit, split), chip)
    links = costs.all_reduce_bytes(config, shape, split) / chip.link_bandwidth
    return dataclasses.asdict(found) | {"links": links}


def _compile(question: Question, place: Place, shape, split: costs.Split, dtype: str, kernel: str) -> dict[str, Any]:
    """What the compiler says: of the program, and of one layer beside the analytic count."""
    config, circuit = question.config, question.circuit
    decode = DecodeConfig(
        steps=1,
        gen_length=question.length,
        block_length=question.block_length,
        coupling=question.coupling if circuit else "none",
        cache=question.cache,
    )
    kind = "block" if question.cache != "none" else question.program
    program = programs.Program(
        config,
        decode,
        question.batch,
        question.length,
        make_mesh({"data": split.data, "model": split.model}, place.devices),
        circuit,
        dtype,
        "auto" if place.cpu else "stacked",
        kernel,
    )
    start = time.perf_counter()
    try:
        footprint = programs.compile_program(program.lower(kind))
    except MemoryError as error:
        return {"fits": False, "compiler": str(error)}
    seconds = time.perf_counter() - start
    counted = programs.compile_program(program.lower_layer()).flops
    shape = dataclasses.replace(shape, computed=None)
    one = [cost(config, shape, split, layers=1).flops for cost in (costs.projection_cost, costs.attention_cost)]
    return {
        "fits": None if place.memory is None else footprint.peak_bytes <= place.memory,
        "compiled": dataclasses.asdict(footprint) | {"program": kind, "seconds": round(seconds, 1)},
        "layer": {"analytic_flops": sum(one), "xla_flops": counted, "ratio": counted / sum(one)},
    }
