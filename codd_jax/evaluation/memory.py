"""Memory that did not suffice: what did not fit, and which batch size or mesh would."""

import math

import jax

from codd_jax.backbones.attention import choose_implementation
from codd_jax.backbones.config import BackboneConfig
from codd_jax.fitting.chips import find_chip, memory_of
from codd_jax.fitting.costs import CircuitShape, Split, StepShape
from codd_jax.fitting.planning import Candidate, estimate, rank_meshes
from codd_jax.generation import LENGTH_BUCKET
from codd_jax.sharding import mesh_shape

_GIB = 2**30
# A mesh is worth naming where it needs so much less that errors of the estimate do not matter.
_CLEARLY_LESS = 0.7


def explain(
    error: Exception, config: BackboneConfig, circuit: CircuitShape | None, batch: int, length: int, mesh: str | None,
    value_bytes: int,
) -> Exception:  # fmt: skip
    """A MemoryError that says what would fit, in place of a device's "out of memory"; any other error as it is.

    Arguments as in `advice`.
    """
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return error
    device = jax.local_devices()[0]
    said = advice(config, circuit, batch, length, mesh, value_bytes, jax.device_count(), memory_of(device))
    reason = (str(error).splitlines() or ["no reason given"])[0][:200]
    return MemoryError(f"the memory of {device.device_kind} is too small ({reason}). {said}")


def advice(
    config: BackboneConfig, circuit: CircuitShape | None, batch: int, length: int, mesh: str | None, value_bytes: int,
    devices: int, memory: int | None,
) -> str:  # fmt: skip
    """What a run needs on each device, and the nearest batch size or mesh that needs less than there is.

    Args:
      config: the backbone. circuit: None without one.
      batch: rows. length: of the longest, prompt and generation.
      mesh: as `make_mesh` reads it, None for one device. value_bytes: of a weight.
      devices: that there are. memory: bytes of each, None where not known.
    """
    length = -(-length // LENGTH_BUCKET) * LENGTH_BUCKET
    split = Split() if mesh is None else Split(*mesh_shape(mesh, devices))
    ranked = min(length, 32 if circuit is None else circuit.length)

    def shape(rows: int, size: int = value_bytes) -> StepShape:
        fused = choose_implementation("auto", "float32" if size == 4 else "bfloat16", config.head_dim) != "xla"
        return StepShape(rows, length, ranked, value_bytes=size, fused_attention=fused)

    def needs(rows: int, size: int = value_bytes) -> Candidate:
        return estimate(config, shape(rows, size), circuit, split, memory, None)

    now = needs(batch)
    said = f"By estimate {batch} rows of {length} positions need {now.bytes / _GIB:.3g} GiB on each device"
    if memory is not None:
        said += f" of {memory / _GIB:.3g} GiB"
    ways = []
    # Where the estimate says that it fits, the estimate is wrong: half the batch at most.
    smaller = batch // 2 // split.data * split.data
    while smaller and not needs(smaller).fits:
        smaller = smaller // 2 // split.data * split.data
    if smaller:
        ways.append(f"--batch_size {smaller} ({needs(smaller).bytes / _GIB:.3g} GiB)")
    chip = find_chip(jax.local_devices()[0].device_kind)
    meshes = rank_meshes(config, shape(batch), circuit, devices, memory, chip)
    better = next((each for each in meshes if each.fits and each.bytes < _CLEARLY_LESS * now.bytes), None)
    if better is not None:
        ways.append(f"--mesh {better.spec} ({better.bytes / _GIB:.3g} GiB)")
    if value_bytes > 2 and needs(batch, 2).fits:
        ways.append(f"--dtype bfloat16 ({needs(batch, 2).bytes / _GIB:.3g} GiB)")
    if not ways:
        wanted = "" if memory is None else f"; about {math.ceil(now.bytes / memory)} times the memory is needed"
        return f"{said}. Neither a smaller batch nor a mesh of {devices} device(s) would hold it{wanted}"
    return f"{said}. By the same estimate these would fit: {' or '.join(ways)}"
