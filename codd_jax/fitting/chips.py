"""What a chip holds and how fast it is, from the makers' data sheets: the yardstick that floors are measured with."""

from __future__ import annotations

import dataclasses
import math
import os
import re

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them (a TPU v4 or v5p chip with both cores together).

    Attributes:
      name: of the family. memory_bytes: of its own memory (HBM).
      bfloat16_flops: dense matrix products per second, multiply and add counted as two.
      float32_flops: the same at full float32 precision, which a TPU makes of six bfloat16 passes.
      memory_bandwidth: bytes per second out of its memory. link_bandwidth: bytes per second to all its neighbours
        together, in one direction.
    """

    name: str
    memory_bytes: int
    bfloat16_flops: float
    float32_flops: float
    memory_bandwidth: float
    link_bandwidth: float

    def rate(self, precision: str) -> float:
        """FLOP/s of matrix products in "bfloat16", in "float32", or "split" (float32 as two bfloat16 passes)."""
        return {
            "bfloat16": self.bfloat16_flops,
            "float32": self.float32_flops,
            "split": self.bfloat16_flops / 2,
        }[precision]


def _tpu(name: str, gib: int, teraflops: float, gigabytes: float, link_gigabits: float) -> Chip:
    """TPUs are specified in bfloat16; links in Gbit/s, all of a chip together, in one direction."""
    rate = teraflops * 1e12
    return Chip(name, gib * GIB, rate, rate / 6, gigabytes * 1e9, link_gigabits * 1e9 / 8)


def _gpu(name: str, gigabytes: float, teraflops: float, float32: float, terabytes: float, link: float) -> Chip:
    """GPUs: dense bfloat16 on tensor cores, float32 outside them, NVLink's gigabytes per second in one direction."""
    return Chip(name, int(gigabytes * 1e9), teraflops * 1e12, float32 * 1e12, terabytes * 1e12, link * 1e9)


# What JAX calls a device (`device_kind`) → its data sheet; the longest name that begins the kind counts.
CHIPS: dict[str, Chip] = {
    "TPU v4": _tpu("v4", 32, 275, 1228, 2400),
    "TPU v5 lite": _tpu("v5e", 16, 197, 819, 1600),
    "TPU v5e": _tpu("v5e", 16, 197, 819, 1600),
    "TPU v5": _tpu("v5p", 95, 459, 2765, 4800),
    "TPU v6 lite": _tpu("v6e", 32, 918, 1640, 3584),
    "TPU v6e": _tpu("v6e", 32, 918, 1640, 3584),
    "NVIDIA A100-SXM4-40GB": _gpu("A100 40GB", 40, 312, 19.5, 1.555, 300),
    "NVIDIA A100": _gpu("A100 80GB", 80, 312, 19.5, 2.039, 300),
    "NVIDIA H100": _gpu("H100", 80, 989, 67, 3.35, 450),
    "NVIDIA H200": _gpu("H200", 141, 989, 67, 4.8, 450),
    "NVIDIA L4": _gpu("L4", 24, 121, 30.3, 0.3, 32),
    "NVIDIA B200": _gpu("B200", 180, 2250, 75, 7.7, 900),
}


def find_chip(device_kind: str) -> Chip | None:
    """The data sheet of `device.device_kind`, None for what is not in the table (a CPU, say)."""
    known = [kind for kind in CHIPS if device_kind.startswith(kind)]
    return CHIPS[max(known, key=len)] if known else None


def find_slice(name: str) -> tuple[Chip, int]:
    """The chip and the number of chips of a TPU slice such as "v5e:2x4"; ValueError for other names."""
    family, _, shape = name.partition(":")
    known = {chip.name: chip for kind, chip in CHIPS.items() if kind.startswith("TPU")}
    if family not in known or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise ValueError(
            f"{name!r} is no TPU slice; it is one of {', '.join(sorted(known))}, a colon and a shape in chips, as in "
            "v5e:2x4, v6e:4x4, v4:2x2x2"
        )
    return known[family], math.prod(map(int, shape.split("x")))


def memory_of(device: jax.Device) -> int | None:
    """Bytes that programs may use on a device: what it says of itself, else the data sheet or the host's memory."""
    if device.platform == "cpu":
        names = getattr(os, "sysconf_names", ())
        known = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names)
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else None
    try:
        stats = device.memory_stats()
    except (jax.errors.JaxRuntimeError, NotImplementedError):  # described, not attached
        stats = None
    if stats and stats.get("bytes_limit"):
        return int(stats["bytes_limit"])
    chip = find_chip(device.device_kind)
    return None if chip is None else chip.memory_bytes
