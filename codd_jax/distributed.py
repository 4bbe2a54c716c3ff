"""Several processes as one: how they join, agree on what the first of them reads, and bring results to the host."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Errors of the first process that every process raises again; anything else becomes a RuntimeError.
_SHARED_ERRORS = (
    ValueError, FileNotFoundError, FileExistsError, PermissionError, ConnectionError, OSError, NotImplementedError
)  # fmt: skip


def initialize(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the processes of a run, before anything touches a device.

    Args:
      coordinator: "host:port" of the first process, or "auto" where the machines know of each other (TPU slices,
        Slurm); None for a single process.
      num_processes, process_id: how many there are, and which this one is, counted from 0; not with "auto".

    Raises:
      ValueError: an incomplete or contradictory description. ConnectionError: the others were not found in time.
    """
    given = num_processes is not None, process_id is not None
    if coordinator is None:
        if any(given):
            raise ValueError(
                "--num_processes and --process_id need the first process's address: --coordinator HOST:PORT"
            )
        return
    options: dict[str, Any] = {}
    if coordinator != "auto":
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not all(given):
            raise ValueError(
                f"--coordinator {coordinator} needs the form HOST:PORT, and --num_processes and --process_id beside "
                "it: the same command on each host, with another --process_id; on a TPU slice 'auto' is enough"
            )
        if not 0 <= process_id < num_processes:
            raise ValueError(f"--process_id {process_id} is not among the processes 0 to {num_processes - 1}")
        options = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    elif any(given):
        raise ValueError("--coordinator auto finds out by itself: leave out --num_processes and --process_id")
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"the processes of the run did not find each other ({reason})") from error


def check_mesh(mesh: jax.sharding.Mesh | None) -> None:
    """Raises a ValueError where some of several processes have no device in the mesh: they would wait for ever."""
    count = jax.process_count()
    inside = set() if mesh is None else {device.process_index for device in mesh.devices.flat}
    if count > 1 and len(inside) < count:
        said = "is missing" if mesh is None else f"uses devices of {len(inside)} of {count} processes"
        raise ValueError(
            f"--mesh {said}; it must span all of them, as data:{jax.device_count()} does: data times model is the "
            "number of devices"
        )


def is_first() -> bool:
    """Whether this process writes the results."""
    return jax.process_index() == 0


def fetch(tree: Any) -> Any:
    """Arrays as NumPy, whole, on every process, wherever their shards are; a collective call with several processes."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree)


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, as global arrays of the given shardings (one, or a tree like `tree`)."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def spread(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(spread, tree, shardings)


def from_first(read: Callable[[], Any]) -> Any:
    """What `read` returns in the first process, in all of them; it must be JSON. Its errors are raised in all, too."""
    if jax.process_count() == 1:
        return read()
    answer: dict[str, Any] = {}
    failed: Exception | None = None
    if is_first():
        try:
            answer = {"value": read()}
        except Exception as error:  # told to the others, who wait; raised again below
            failed = error
            kind = next((kind.__name__ for kind in _SHARED_ERRORS if isinstance(error, kind)), "RuntimeError")
            answer = {"error": str(error), "kind": kind}
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if failed is not None:
        raise failed
    if "error" in answer:
        kinds = {kind.__name__: kind for kind in _SHARED_ERRORS}
        raise kinds.get(answer["kind"], RuntimeError)(answer["error"])
    return answer["value"]


def _broadcast(content: bytes) -> bytes:
    """The first process's bytes; the others' may be of any length."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    buffer = np.zeros(size, np.uint8)
    if is_first():
        buffer[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8).tobytes()
