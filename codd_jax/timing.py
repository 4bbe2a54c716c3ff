"""Timing for the benchmarks: interleaved runs, so that a ratio holds when the machine's speed drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

_REST = 0.05  # seconds


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int, *, progress: bool = False) -> dict[str, float]:
    """Median seconds of each call over `repeats` rounds; every round runs all of them, one after the other.

    A first round that compiles and warms up is not counted. What a call returns is waited for. Between calls nothing
    runs for a moment: the worker threads of another runtime go on spinning for some milliseconds after their call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(repeats + 1), desc="timing", unit="round", disable=not progress):
        for name, call in calls.items():
            time.sleep(_REST)
            start = time.perf_counter()
            jax.block_until_ready(call())
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine_rates(dtype: Any, size: int = 4096, repeats: int = 5) -> tuple[float, float]:
    """(FLOP/s of a square matrix product in `dtype`, bytes/s of reading and writing an array), as measured now.

    These are the floors that a step is held against: what this machine does at its best, not what its maker states.
    """
    key = jax.random.key(0)
    square = jax.random.normal(key, (size, size), dtype)
    stream = jnp.zeros((1 << 28) // jnp.dtype(dtype).itemsize, dtype)
    product = jax.jit(lambda x: x @ x)
    shift = jax.jit(lambda x: x + 1)
    seconds = interleaved({"product": lambda: product(square), "stream": lambda: shift(stream)}, repeats)
    return 2 * size**3 / seconds["product"], 2 * stream.nbytes / seconds["stream"]
