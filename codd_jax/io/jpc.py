"""Read and write `.jpc` circuit files, the format that CoDD's circuits are published in.

The reader needs neither PyJuice nor PyTorch and runs nothing that the file names; the writer's files load in PyJuice.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from codd_jax.circuits.hmm import HMM
from codd_jax.io.jpc_chain import open_chain
from codd_jax.io.jpc_nodes import EXTERN_PRODUCT, SOFT_EVIDENCE
from codd_jax.io.whole_file import writing


def read(path: str | os.PathLike) -> HMM:
    """The circuit of a `.jpc` file, its float32 probabilities bit for bit as stored (rows are not renormalised).

    PyJuice does not store how a circuit was trained: its files come with normalization "global". Those of `write` keep
    theirs.

    Raises:
      ValueError: the file is truncated, hostile, or holds no HMM; the message names the file and the reason.
      FileNotFoundError: no such file.
    """
    chain = open_chain(path)
    # Copies: the arrays must outlive the file and the mapping of it.
    initial, transition, emission = (
        jnp.array(part(), jnp.float32) for part in (chain.initial, chain.transition, chain.emission)
    )
    return HMM(
        initial=initial,
        transition=transition,
        emission=emission,
        length=chain.length,
        normalization=chain.normalization,
    )


def write(path: str | os.PathLike, hmm: HMM) -> None:
    """Write a circuit as PyJuice would save it; `pyjuice.load` reads the file.

    Probabilities are written as float32, bit for bit if that is what they are. The file appears under its name only
    once it is complete. With normalization "local" the inputs are SoftEvidenceCategorical and the root says so.

    Raises:
      ValueError: the name does not end in .jpc (PyJuice would refuse it), the circuit follows the context (the format
        has no place for that), or the shapes are not those of an HMM.
      OSError: the disk is full, say; it names the file, and nothing half-written is left.
    """
    path = Path(path)
    if path.suffix != ".jpc":
        raise ValueError(f"{path}: PyJuice reads only files whose name ends in .jpc; name it {path.name}.jpc")
    if hmm.modulation is not None:
        raise ValueError(
            f"{path}: the circuit follows the context ({', '.join(hmm.modulation.kinds)}), which .jpc cannot hold; "
            "keep it as a circuit folder, or write the static circuit: hmm.with_modulation(None), --drop-modulation"
        )
    nodes = _node_dicts(hmm)
    with writing(path) as file:
        pickle.dump(nodes, file, protocol=4)


def _node_dicts(hmm: HMM) -> list[dict[str, Any]]:
    """The 3T node dicts in PyJuice's order: inputs, then products and sums from the last position to the first."""
    initial, transition, emission = (
        np.ascontiguousarray(np.asarray(part), dtype=np.float32) for part in (hmm.initial, hmm.transition, hmm.emission)
    )
    length, (states, vocab) = hmm.length, emission.shape[-2:]
    tied_emission, tied_transition = emission.ndim == 2, transition.ndim == 2
    if not ((tied_emission or len(emission) == length) and (tied_transition or len(transition) == length - 1)):
        raise ValueError(f"emission {emission.shape} and transition {transition.shape} do not fit {length} positions")
    size = min(states & -states, 1024)  # PyJuice's own choice: the largest power of two that divides H
    blocks = states // size
    layer = {"num_node_blocks": blocks, "block_size": size}
    grid = np.indices((blocks, blocks)).reshape(2, -1)

    def product(*children: int) -> dict[str, Any]:
        edges = np.repeat(np.arange(blocks)[:, None], len(children), axis=1)
        return {"type": "Product", **layer, "chs": children, "edge_ids": edges}

    nodes: list[dict[str, Any]] = []
    for t in range(length):
        own = {"params": emission.reshape(-1)} if tied_emission else {"params": emission[t].reshape(-1)}
        shared = tied_emission and t < length - 1
        parameters = {} if shared else own
        source = {"source_node": length - 1} if shared else {}
        nodes.append(
            {
                "type": "Input",
                **layer,
                "chs": (),
                **parameters,
                "scope": [t],
                "dist": _distribution(vocab, hmm.normalization),
            }
            | source
        )
    nodes.append(product(length - 1))
    for t in reversed(range(length - 1)):
        edge = {"type": "Sum", **layer, "chs": (len(nodes) - 1,), "edge_ids": grid.copy()}
        if tied_transition and t < length - 2:
            edge["source_node"] = length + 1
        else:
            weights = transition if tied_transition else transition[t]
            parts = weights.reshape(blocks, size, blocks, size).transpose(0, 2, 1, 3)
            edge["params"] = np.ascontiguousarray(parts.reshape(blocks * blocks, size, size))
        nodes += [edge, product(t, len(nodes))]
    root = {"num_node_blocks": 1, "block_size": 1, "chs": (len(nodes) - 1,)}
    edges = np.stack([np.zeros(blocks, np.int64), np.arange(blocks)])
    nodes.append({"type": "Sum", **root, "edge_ids": edges, "params": initial.reshape(blocks, 1, size)})
    if hmm.normalization != "global":
        nodes[-1]["normalization"] = hmm.normalization
    return nodes


def _distribution(vocab: int, normalization: str) -> bytes:
    """The nested pickle that makes PyJuice build the input distribution, spelled out: PyJuice is not imported."""
    module, name = SOFT_EVIDENCE if normalization == "local" else EXTERN_PRODUCT

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode() + b"\x94"

    number = b"K" + bytes([vocab]) if vocab < 256 else b"M" if vocab < 65536 else b"J"
    number += b"" if vocab < 256 else vocab.to_bytes(2 if vocab < 65536 else 4, "little")
    arguments = number + (b"\x88\x86\x94" if normalization == "local" else b"\x85\x94")
    body = text(module) + text(name) + b"\x93\x94" + arguments + b"R\x94."
    return b"\x80\x04\x95" + len(body).to_bytes(8, "little") + body
