"""Which mesh holds a model and serves it fastest, estimated from shapes alone, before anything is compiled."""

from __future__ import annotations

import dataclasses

from codd_jax.backbones.config import BackboneConfig
from codd_jax.fitting.chips import Chip
from codd_jax.fitting.costs import (
    CircuitShape,
    Split,
    StepShape,
    activation_bytes,
    all_reduce_bytes,
    circuit_bytes,
    floors,
    parameter_bytes,
    step_costs,
)

# Programs, runtime and fragmentation take their share of a device's memory.
USABLE = 0.92
_MOST_DEVICES = 4096


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh with its estimate.

    Attributes:
      split: sizes of the axes. bytes: on the fullest device. fits: into `USABLE` of its memory.
      seconds: floor of a step with the time on the links; None for a chip without a data sheet.
    """

    split: Split
    bytes: int
    fits: bool
    seconds: float | None

    @property
    def spec(self) -> str:
        """As `make_mesh` reads it."""
        return f"data:{self.split.data},model:{self.split.model}"


def estimate(
    config: BackboneConfig, shape: StepShape, circuit: CircuitShape | None, split: Split, memory: int | None,
    chip: Chip | None,
) -> Candidate:  # fmt: skip
    """One mesh's estimate; `memory` in bytes per device, None where it is not known (everything fits)."""
    needed = parameter_bytes(config, shape.value_bytes, split) + activation_bytes(config, shape, circuit, split)
    needed += 0 if circuit is None else circuit_bytes(circuit, split)
    seconds = None
    if chip is not None:
        seconds = floors(step_costs(config, shape, circuit, split), chip).together
        seconds += all_reduce_bytes(config, shape, split) / chip.link_bandwidth
    return Candidate(split, needed, memory is None or needed <= USABLE * memory, seconds)


def rank_meshes(
    config: BackboneConfig,
    shape: StepShape,
    circuit: CircuitShape | None,
    devices: int,
    memory: int | None,
    chip: Chip | None = None,
) -> list[Candidate]:
    """All meshes of at most `devices` whose data axis divides the batch, best first.

    Those that fit come before those that do not; then the faster (without a data sheet: the one with the smaller
    model axis, which communicates less); then the one with fewer devices.
    """
    found = [
        estimate(config, shape, circuit, Split(data, model), memory, chip)
        for model in divisors(devices)
        for data in divisors(shape.batch)
        if data * model <= devices
    ]

    def order(candidate: Candidate):
        split = candidate.split
        speed = (split.model, -split.data) if candidate.seconds is None else (round(candidate.seconds, 6),)
        return not candidate.fits, *speed, split.data * split.model

    return sorted(found, key=order)


def devices_needed(
    config: BackboneConfig, shape: StepShape, circuit: CircuitShape | None, memory: int
) -> Candidate | None:
    """The smallest power of two for the model axis, with one row a device if need be, that fits; None if none does."""
    model = 1
    while model <= _MOST_DEVICES:
        for data in divisors(shape.batch):
            candidate = estimate(config, shape, circuit, Split(data, model), memory, None)
            if candidate.fits:
                return candidate
        model *= 2
    return None


def divisors(number: int) -> list[int]:
    """In ascending order."""
    return [size for size in range(1, number + 1) if number % size == 0]
