"""Will training fit on these devices, and what does an update cost there: estimates, and the compiler's word."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax

from codd_jax.backbones.attention import choose_implementation
from codd_jax.backbones.config import BackboneConfig, check_length
from codd_jax.fitting import chips, costs, programs
from codd_jax.fitting.planning import USABLE, divisors
from codd_jax.fitting.question import Place, find_place, read_split, timed_parts
from codd_jax.sharding import make_mesh
from codd_jax.training.circuit_config import CircuitTraining
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.joint_costs import UpdateShape, activation_bytes, layer_flops, link_bytes, update_costs
from codd_jax.training.joint_program import CircuitProgram, JointProgram

_MOST_DEVICES = 1024


@dataclasses.dataclass(frozen=True)
class TrainingQuestion:
    """Which training is to be fitted where.

    Attributes:
      label: of the backbone, for people. config: its sizes. circuit: None without one.
      training: the recipe; its `dtype` is that of the computation.
      length: positions of a row. windows: coupled windows of a row.
      attention: as `Transformer`'s attention_implementation.
      topology, mesh, compile: as in `fitting.question.Question`.
    """

    label: str
    config: BackboneConfig
    circuit: costs.CircuitShape | None
    training: JointTraining
    length: int = 768
    windows: int = 8
    attention: str = "auto"
    topology: str | None = None
    mesh: str | None = None
    compile: bool = True


def answer(question: TrainingQuestion) -> dict[str, Any]:
    """The report of a joint update, ready for JSON; bytes are per device, times in seconds.

    Raises ValueError where the parts of the question contradict each other, ModuleNotFoundError without libtpu.
    """
    config, training, circuit = question.config, question.training, question.circuit
    check_length(config, question.length)
    window = circuit.length if circuit else 32
    if question.windows * window > question.length:
        raise ValueError(
            f"{question.windows} windows of {window} tokens are more than a row of {question.length} positions"
        )
    place = find_place(question.topology, question.compile)
    layout = "auto" if place.cpu else "stacked"
    kernel = choose_implementation(question.attention, training.dtype or "float32", config.head_dim, place.backend)
    program = JointProgram(config, training, circuit, question.length, question.windows, layout, kernel)
    size = 4 if training.dtype == "float32" else 2
    shape = UpdateShape(training, question.length, question.windows, window, size, kernel != "xla")
    meshes = sorted((_candidate(program, shape, split, place) for split in _splits(training, place.number)), key=_order)
    if question.mesh:
        split = read_split(question.mesh, training.batch_size // training.accumulate, place.number)
        chosen = _candidate(program, shape, split, place)
    else:
        chosen = meshes[0]
    split = chosen["split"]
    state = program.state_bytes(split)
    parts = _parts(program, shape, split)
    report = {
        "name": "-".join(
            [question.label, "train", training.train, place.kind, f"{split.data}x{split.model}",
             f"batch{training.batch_size}"]
        ).replace(":", "-").replace(" ", "-"),
        "backbone": question.label,
        "weights": config.num_params,
        "dtype": training.dtype,
        "train": training.train,
        "trained": sum(x.size for x in jax.tree.leaves(program.parts[1].params)),
        "param_dtype": training.param_dtype,
        "moment_dtype": training.moment_dtype or training.param_dtype,
        "remat": training.remat,
        "shard_over_data": training.shard_over_data,
        "circuit": None if circuit is None else dataclasses.asdict(circuit),
        "batch": training.batch_size,
        "accumulate": training.accumulate,
        "length": question.length,
        "windows": question.windows,
        "devices": place.number,
        "chip": place.kind,
        "memory_bytes": place.memory,
        "mesh": _spec(split),
        "fits": None if place.memory is None else chosen["fits"],
        "trained_bytes": state["weights"],
        "optimiser_bytes": state["optimiser"],
        "frozen_bytes": state["frozen"],
        "gradient_bytes": state["gradients"],
        "working_bytes": activation_bytes(config, shape, circuit, split),
        "estimate_bytes": chosen["bytes"],
        "parts": timed_parts(parts, place.chip),
        "floors": _floors(parts, link_bytes(config, shape, state["weights"], split), place.chip),
        "meshes": [{key: each[key] for key in ("mesh", "bytes", "fits", "seconds")} for each in meshes],
        "suggested_mesh": meshes[0]["mesh"] if meshes[0]["fits"] else None,
        "devices_needed": _devices_needed(program, shape, place),
        "compiled": None,
        "layer": None,
        "compiler": None,
    }  # fmt: skip
    return report | (_compile(program, shape, split, place) if question.compile else {})


def answer_circuit(
    label: str,
    program: CircuitProgram,
    *,
    topology: str | None = None,
    compiling: bool = True,
) -> dict[str, Any]:
    """The report of a step of circuit training, data parallel over all devices; ready for JSON."""
    place = find_place(topology, compiling)
    config, circuit = program.config, program.circuit
    CircuitTraining(rule=program.rule, chunk=program.chunk).check_batch(program.batch, place.number)
    windows = program.batch // place.number
    values = circuit.num_states * (1 + circuit.num_states + circuit.vocab_size) * 4
    head_bytes = config.vocab_size * config.width * (4 if program.dtype == "float32" else 2)
    positions = windows * circuit.length
    head = costs.Cost(
        2.0 * positions * config.vocab_size * config.width, head_bytes + 4 * positions * config.vocab_size
    )
    leaf = 2.0 * positions * circuit.vocab_size * circuit.num_states
    parts = {"head": head, "leaves and their gradient": costs.Cost(2 * leaf, 3 * values, "float32")}
    moments = {"adam": 2, "adamax": 2}.get(program.rule, 1)
    held = min(windows, program.chunk or windows) * circuit.length * circuit.vocab_size * 4
    state = {"trained_bytes": values, "optimiser_bytes": moments * values, "frozen_bytes": head_bytes}
    # Beside the potentials of the windows at hand: E as probabilities, and sums over devices on their way.
    working = 3 * held + 3 * values
    total = sum(state.values()) + 2 * values + working
    fits = None if place.memory is None else total <= USABLE * place.memory
    report = {
        "name": f"{label}-train-circuit-{place.kind}-batch{program.batch}".replace(":", "-").replace(" ", "-"),
        "backbone": label,
        "weights": config.num_params,
        "dtype": program.dtype,
        "train": "circuit",
        "rule": program.rule,
        "circuit": dataclasses.asdict(circuit),
        "batch": program.batch,
        "devices": place.number,
        "chip": place.kind,
        "memory_bytes": place.memory,
        "mesh": f"data:{place.number},model:1",
        "fits": fits,
        **state,
        "gradient_bytes": 2 * values,
        "working_bytes": working,
        "estimate_bytes": total,
        "parts": timed_parts(parts, place.chip),
        "floors": _floors(parts, 2 * values if place.number > 1 else 0, place.chip),
        "meshes": [],
        "suggested_mesh": f"data:{place.number},model:1",
        "devices_needed": None,
        "compiled": None,
        "layer": None,
        "compiler": None,
    }
    if not compiling:
        return report
    return report | _compiled(program.lower, make_mesh({"data": place.number}, place.devices), place)


def _splits(training: JointTraining, devices: int) -> list[costs.Split]:
    """Every mesh whose data axis divides a part of the batch."""
    rows = training.batch_size // training.accumulate
    return [
        costs.Split(data, model) for model in divisors(devices) for data in divisors(rows) if data * model <= devices
    ]


def _candidate(program: JointProgram, shape: UpdateShape, split: costs.Split, place: Place) -> dict[str, Any]:
    """One mesh's estimate."""
    config, circuit = program.config, program.circuit
    state = program.state_bytes(split)
    needed = sum(state.values()) + activation_bytes(config, shape, circuit, split)
    floors = _floors(_parts(program, shape, split), link_bytes(config, shape, state["weights"], split), place.chip)
    return {
        "split": split,
        "mesh": _spec(split),
        "bytes": needed,
        "fits": place.memory is None or needed <= USABLE * place.memory,
        "seconds": None if floors is None else floors["together"] + floors["links"],
    }


def _parts(program: JointProgram, shape: UpdateShape, split: costs.Split) -> dict[str, costs.Cost]:
    """The parts of an update, the optimiser's own among them: it reads gradients, and reads and writes the rest."""
    state = program.state_bytes(split)
    own = costs.Cost(0, state["gradients"] + 2 * (state["weights"] + state["optimiser"]))
    return update_costs(program.config, shape, program.circuit, split) | {"optimiser": own}


def _order(candidate: dict[str, Any]) -> tuple:
    """What fits first, then the faster, then fewer devices."""
    split = candidate["split"]
    speed = (split.model, -split.data) if candidate["seconds"] is None else (round(candidate["seconds"], 6),)
    return not candidate["fits"], *speed, split.data * split.model


def _devices_needed(program: JointProgram, shape: UpdateShape, place: Place) -> int | None:
    """The smallest power of two for the model axis, with as few rows a device as need be, that fits."""
    model = 1
    while place.memory is not None and model <= _MOST_DEVICES:
        for data in divisors(shape.training.batch_size // shape.training.accumulate):
            if _candidate(program, shape, costs.Split(data, model), place)["fits"]:
                return data * model
        model *= 2
    return None


def _floors(parts: dict[str, costs.Cost], sent: int, chip: chips.Chip | None) -> dict[str, float] | None:
    if chip is None:
        return None
    return dataclasses.asdict(costs.floors(parts, chip)) | {"links": sent / chip.link_bandwidth}


def _compile(program: JointProgram, shape: UpdateShape, split: costs.Split, place: Place) -> dict[str, Any]:
    """What the compiler says: of the update, and of one block's gradient beside the analytic count."""
    mesh = make_mesh({"data": split.data, "model": split.model}, place.devices)
    said = _compiled(program.lower, mesh, place)
    if said["compiled"] is None:
        return said
    counted = programs.compile_program(program.lower_layer(mesh)).flops
    expected = layer_flops(program.config, shape, split)
    return said | {"layer": {"analytic_flops": expected, "xla_flops": counted, "ratio": counted / expected}}


def _compiled(lower: Any, mesh: jax.sharding.Mesh, place: Place) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        footprint = programs.compile_program(lower(mesh))
    except MemoryError as error:
        return {"fits": False, "compiler": str(error), "compiled": None}
    seconds = round(time.perf_counter() - start, 1)
    return {
        "fits": None if place.memory is None else footprint.peak_bytes <= place.memory,
        "compiled": dataclasses.asdict(footprint) | {"program": "update", "seconds": seconds},
    }


def _spec(split: costs.Split) -> str:
    return f"data:{split.data},model:{split.model}"
