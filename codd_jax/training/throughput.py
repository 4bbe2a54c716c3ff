"""How fast a step of circuit training is, how much it holds, and the floor that its arithmetic sets."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from codd_jax.circuits import HMM
from codd_jax.fitting.chips import memory_of
from codd_jax.timing import machine_rates
from codd_jax.training.circuit_config import CircuitTraining
from codd_jax.training.circuit_step import make_step
from codd_jax.training.potentials import Head, WindowPotentials


def step_flops(windows: int, length: int, width: int, states: int, vocab: int) -> float:
    """Multiplications and additions of a gradient step that no arrangement avoids, in products with V columns or rows.

    Forward through the frozen head (2·T·D·V a window), the leaves E·φ (2·T·H·V), and the gradient of E, again as
    much; the chain's products (H² a position) are left out, being thousands of times smaller.
    """
    return 2.0 * windows * length * vocab * (width + 2 * states)


def measure_throughput(
    *,
    states: int = 1024,
    vocab: int = 126464,
    width: int = 4096,
    length: int = 32,
    batch_size: int = 8,
    chunk: int | None = None,
    rule: str = "adam",
    potentials_dtype: str = "float32",
    head_dtype: str = "float32",
    repeats: int = 3,
) -> dict[str, Any]:
    """Times real steps on random states and weights of a size; the default is that of the published LLaDA circuits.

    Returns:
      `windows_per_second`, `seconds_per_step` (median), `step_bytes` (what the compiler plans for a step: arguments and
      temporaries), `peak_bytes` (of the process on a CPU, of the device elsewhere), `flops`, `floor_seconds` (at the
      rate of a square product measured now), `floor_share`, and the settings.
    """
    config = CircuitTraining(rule=rule, potentials_dtype=potentials_dtype, chunk=chunk)
    made = config.make_rule()
    windows = _random_windows(batch_size, length, width, vocab, head_dtype)
    head = Head(jax.random.normal(jax.random.key(1), (vocab, width), head_dtype) * width**-0.5, None, 1.0, head_dtype)
    normalization = "local" if rule == "dual_ratio" else "global"
    state = jax.jit(
        lambda: made.init(HMM.random(jax.random.key(0), length, states, vocab, scale=0.1, normalization=normalization))
    )()
    compiled = make_step(made, None, chunk).lower(state, head, windows, jnp.float32(1)).compile()
    planned = compiled.memory_analysis()
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, *metrics = compiled(state, head, windows, jnp.float32(1))
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    del state
    rate = machine_rates(head_dtype, size=2048)[0]
    flops, median = step_flops(batch_size, length, width, states, vocab), float(np.median(seconds[1:]))
    return {
        "windows_per_second": batch_size / median,
        "seconds_per_step": median,
        "step_bytes": _planned_bytes(planned),
        "peak_bytes": peak_bytes(),
        "flops": flops,
        "floor_seconds": flops / rate,
        "floor_share": flops / rate / median,
        "product_flops_per_second": rate,
        "device": jax.devices()[0].device_kind,
        "device_bytes": memory_of(jax.devices()[0]),
        "states": states,
        "vocab": vocab,
        "width": width,
        "length": length,
        "batch_size": batch_size,
        "chunk": chunk,
        "rule": rule,
        "potentials_dtype": potentials_dtype,
        "head_dtype": head_dtype,
    }


def render_throughput(result: dict[str, Any]) -> str:
    """The figures as two lines."""
    gib = 2**30
    planned = "" if result["step_bytes"] is None else f", {result['step_bytes'] / gib:.1f} GiB planned for a step"
    return (
        f"{result['rule']}, H={result['states']}, V={result['vocab']}, D={result['width']}, T={result['length']}, "
        f"{result['batch_size']} windows a step on {result['device']}: {result['windows_per_second']:.2f} windows/s, "
        f"{result['seconds_per_step']:.2f} s a step\n"
        f"arithmetic floor {result['floor_seconds']:.2f} s ({result['flops'] / 1e9:.0f} GFLOP at "
        f"{result['product_flops_per_second'] / 1e9:.0f} GFLOP/s measured): {result['floor_share']:.0%} of it reached; "
        f"peak memory {result['peak_bytes'] / gib:.1f} GiB{planned}"
    )


def peak_bytes() -> int:
    """The most memory that was in use so far: of the device where it says so, else of this process."""
    stats = jax.devices()[0].memory_stats() if jax.devices()[0].platform != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _random_windows(batch: int, length: int, width: int, vocab: int, dtype: str) -> WindowPotentials:
    keys = jax.random.split(jax.random.key(2), 3)
    hidden = jax.random.normal(keys[0], (batch, length, width), dtype)
    tokens = jax.random.randint(keys[1], (batch, length), 0, vocab)
    return WindowPotentials.of(hidden, tokens, jax.random.uniform(keys[2], (batch, length)) < 0.5)


def _planned_bytes(planned: Any) -> int | None:
    """Arguments, results that are not the arguments' own memory, and temporaries."""
    if planned is None:
        return None
    return int(
        planned.argument_size_in_bytes
        + planned.output_size_in_bytes
        - planned.alias_size_in_bytes
        + planned.temp_size_in_bytes
    )
