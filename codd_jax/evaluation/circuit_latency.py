"""The circuit alone, part by part, and its messages by every algorithm that was tried, each against the same floor."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from codd_jax import circuits
from codd_jax.circuits import HMM, logspace
from codd_jax.circuits.messages import (
    backward_chain,
    forward_messages,
    log_partition_from_leaf,
    masked_leaf_values,
)
from codd_jax.circuits.posterior import sample_latents_from_chain
from codd_jax.evaluation.provenance import environment
from codd_jax.fitting.costs import CircuitShape, StepShape, circuit_costs
from codd_jax.timing import interleaved, machine_rates


@dataclasses.dataclass(frozen=True)
class CircuitWork:
    """What is timed.

    Attributes:
      num_states, vocab_size, length: of the random circuit. batches: windows at a time. repeats: counted rounds.
      emission_dtype: of E; everything else is float32.
    """

    num_states: int = 1024
    vocab_size: int = 126464
    length: int = 32
    batches: Sequence[int] = (1, 8)
    repeats: int = 5
    emission_dtype: str = "float32"


def scan_messages(hmm: HMM, leaf: jax.Array) -> jax.Array:
    """The library's own: one scaled matrix product a position, last to first, [..., T, H] → log Z [...]."""
    return log_partition_from_leaf(hmm, leaf)


def scan_forwards(hmm: HMM, leaf: jax.Array) -> jax.Array:
    """The library's own in the other direction, which any-order sampling and learning need as well."""
    return logspace.logsumexp(forward_messages(hmm, leaf)[1][..., -1, :])


def broadcast_messages(hmm: HMM, leaf: jax.Array) -> jax.Array:
    """Log-sum-exp over a broadcast [..., H, H] sum at every position."""
    transition = logspace.safe_log(hmm.transition)

    def step(message, weight):
        return logspace.logsumexp(message[..., :, None] + transition, axis=-2) + weight, None

    weights = jnp.moveaxis(leaf, -2, 0)
    first = logspace.safe_log(hmm.initial) + weights[0]
    return logspace.logsumexp(lax.scan(step, first, weights[1:])[0])


def associative_messages(hmm: HMM, leaf: jax.Array) -> jax.Array:
    """An associative scan over [..., T-1, H, H] matrices, scaled after every product: log₂ T kernels deep, H times the
    arithmetic."""
    shift = logspace.finite_max(leaf)
    factors = hmm.transition * jnp.exp(leaf - shift)[..., 1:, None, :]

    def combine(left, right):
        (a, a_log), (b, b_log) = left, right
        product = jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
        top = jnp.max(product, axis=(-2, -1), keepdims=True)
        return product / top, a_log + b_log + jnp.log(top[..., 0, 0])

    chained, logs = lax.associative_scan(combine, (factors, jnp.zeros(factors.shape[:-2])), axis=leaf.ndim - 2)
    first = hmm.initial * jnp.exp(leaf - shift)[..., 0, :]
    total = jnp.einsum("...i,...ij->...", first, chained[..., -1, :, :], precision=lax.Precision.HIGHEST)
    return jnp.log(total) + logs[..., -1] + jnp.sum(shift, axis=(-2, -1))


def blocked_messages(hmm: HMM, leaf: jax.Array, block: int = 4) -> jax.Array:
    """Products of `block` positions' matrices, all blocks at once, then a scan of one matrix product a block."""
    shift = logspace.finite_max(leaf)
    weights = jnp.exp(leaf - shift)
    batch, length, states = leaf.shape
    count = -(-(length - 1) // block)
    padded = jnp.broadcast_to(jnp.eye(states), (batch, count * block, states, states))
    factors = hmm.transition * weights[:, 1:, None, :]
    factors = padded.at[:, : length - 1].set(factors).reshape(batch, count, block, states, states)

    def fold(product, factor):
        product = jnp.matmul(product, factor, precision=lax.Precision.HIGHEST)
        top = jnp.max(product, axis=(-2, -1), keepdims=True)
        return product / top, jnp.log(top[..., 0, 0])

    products, logs = lax.scan(fold, factors[:, :, 0], jnp.moveaxis(factors, 2, 0)[1:])

    def step(message, matrix):
        message = jnp.einsum("bi,bij->bj", message, matrix, precision=lax.Precision.HIGHEST)
        top = jnp.max(message, axis=-1, keepdims=True)
        return message / top, jnp.log(top[:, 0])

    last, tops = lax.scan(step, hmm.initial * weights[:, 0], jnp.moveaxis(products, 1, 0))
    return jnp.log(last.sum(-1)) + tops.sum(0) + logs.sum((0, 2)) + jnp.sum(shift, axis=(-2, -1))


ALGORITHMS: dict[str, Callable[[HMM, jax.Array], jax.Array]] = {
    "scan of matrix-vector products": scan_messages,
    "the same, forwards": scan_forwards,
    "broadcast log-sum-exp": broadcast_messages,
    "blocked products": blocked_messages,
    "associative scan": associative_messages,
}
# Parts of a few milliseconds are timed as so many calls in a row, torch's as well: after a pause the processor is slow
# and its caches are another's, and that would be most of what is measured.
_IN_A_ROW = 10
_LONG = ("leaf product", "leaf product as torch's matmul", "blocked products", "associative scan")
# These hold a matrix for every position of every window.
_LARGE = ("blocked products", "associative scan")


def measure_circuit(
    work: CircuitWork, peer: Callable[..., dict[str, Any]] | None = None, progress: bool = True
) -> dict[str, Any]:
    """Seconds of leaf product, messages and latent sampling, and of each message algorithm.

    Args:
      work: the shapes.
      peer: `PytorchPeer.ask`; adds torch's own matrix product of the leaf's shape to the same rounds.
      progress: show a bar.

    Returns:
      `rates`, and `parts`: a row a batch and part with `seconds`, `floor` and `share_of_floor`
      (None where a part has no floor of its own).

    Raises:
      FloatingPointError: two message algorithms disagree.
    """
    flops, bandwidth = machine_rates(jnp.float32)
    hmm = HMM.random(jax.random.key(0), work.length, work.num_states, work.vocab_size)
    hmm = hmm.replace(emission=hmm.emission.astype(work.emission_dtype))
    rows = []
    for batch in work.batches:
        logits = 3 * jax.random.normal(jax.random.key(batch), (batch, work.length, work.vocab_size))
        log_phi = jax.jit(jax.nn.log_softmax)(logits)
        leaf = jax.jit(masked_leaf_values)(hmm, log_phi)
        calls = _calls(hmm, log_phi, leaf, batch)
        if peer is not None:
            sizes = [work.num_states, work.vocab_size, batch * work.length]
            calls["leaf product as torch's matmul"] = functools.partial(_ask, peer, sizes, 1)
            small = [batch, work.num_states, work.num_states]
            calls["messages as torch's matmuls"] = functools.partial(_ask, peer, small, work.length - 1)
        agree([calls[name](1) for name in ALGORITHMS if name in calls])
        counts = {name: 1 if name in _LONG else _IN_A_ROW for name in calls}
        timed = {name: functools.partial(call, counts[name]) for name, call in calls.items()}
        seconds = interleaved(timed, work.repeats, progress=progress)
        seconds = {name: value / counts[name] for name, value in seconds.items()}
        shape = CircuitShape(work.num_states, work.vocab_size, work.length, hmm.emission.dtype.itemsize)
        costs = circuit_costs(shape, StepShape(batch, work.length, work.length))
        floors = {name: max(cost.flops / flops, cost.bytes / bandwidth) for name, cost in costs.items()}
        for name, value in seconds.items():
            floor = _floor(name, floors)
            share = None if floor is None else floor / value
            rows.append({"batch": batch, "part": name, "seconds": value, "floor": floor, "share_of_floor": share})
    rates = {"flops_per_second": flops, "bytes_per_second": bandwidth, "dtype": "float32"}
    return {"rates": rates, "parts": rows, "workload": dataclasses.asdict(work), "environment": environment()}


def _in_a_row(call: Callable[..., Any], *args: Any) -> Callable[[int], Any]:
    """`count` → what the last of so many calls in a row returns."""

    def run(count: int) -> Any:
        for _ in range(count):
            out = jax.block_until_ready(call(*args))
        return out

    return run


def _ask(peer: Callable[..., dict[str, Any]], sizes: Sequence[int], products: int, count: int) -> dict[str, Any]:
    return peer(matmul=sizes, times=products * count)


def _floor(name: str, floors: dict[str, float]) -> float | None:
    if "leaf" in name:
        return floors["leaf"]
    return floors["messages"] if name in ALGORITHMS or "messages" in name else None


def agree(partitions: Sequence[jax.Array], tolerance: float = 1e-3) -> None:
    """Raises FloatingPointError unless all log partitions [batch] are equal within `tolerance` nats."""
    gaps = [float(jnp.max(jnp.abs(other - partitions[0]))) for other in partitions[1:]]
    if any(not gap <= tolerance for gap in gaps):
        raise FloatingPointError(f"the message algorithms disagree by {max(gaps)} nats")


def _calls(hmm: HMM, log_phi: jax.Array, leaf: jax.Array, batch: int) -> dict[str, Callable[[int], Any]]:
    leaf_product = jax.jit(masked_leaf_values)
    chain = jax.jit(backward_chain)(hmm, leaf)
    keys = jax.random.split(jax.random.key(2), batch)
    draw = jax.jit(jax.vmap(sample_latents_from_chain, in_axes=(None, 0, 0)))
    path = draw(hmm, chain, keys)
    emitted = jax.jit(jax.vmap(circuits.latent_logits, in_axes=(None, 0, 0)))
    calls = {
        "leaf product": _in_a_row(leaf_product, hmm, log_phi),
        "latent sampling": _in_a_row(draw, hmm, chain, keys),
        "coupled logits": _in_a_row(emitted, hmm, log_phi, path),
    }
    for name, algorithm in ALGORITHMS.items():
        if name in _LARGE and batch > 1:
            continue  # a matrix for every position of every window: 130 MB a window at true size
        calls[name] = _in_a_row(jax.jit(algorithm), hmm, leaf)
    return calls


def circuit_table(result: dict[str, Any]) -> str:
    """Markdown: a row a part and batch."""
    rates = result["rates"]
    lines = [
        f"Rates of this machine in this run: {rates['flops_per_second'] / 1e9:,.1f} GFLOP/s for a float32 matrix "
        f"product, {rates['bytes_per_second'] / 1e9:,.1f} GB/s.",
        "",
        "| batch | part of the circuit | ms | floor, ms | share of the floor |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for row in result["parts"]:
        told = "| | |" if row["floor"] is None else f"| {row['floor'] * 1e3:.2f} | {row['share_of_floor']:.0%} |"
        lines.append(f"| {row['batch']} | {row['part']} | {row['seconds'] * 1e3:.2f} {told}")
    return "\n".join(lines) + "\n"
