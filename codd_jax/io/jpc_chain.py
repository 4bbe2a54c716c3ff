"""Follow the chain of a `.jpc` file's nodes and find the HMM in it: sizes first, arrays when asked for."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from codd_jax.io.jpc_nodes import Node, read_nodes


@dataclasses.dataclass(frozen=True)
class Chain:
    """An HMM as it lies in a file: H states, V categories, T positions; shapes are known before data are read."""

    origin: str
    length: int
    num_states: int
    vocab_size: int
    normalization: str
    root: Node
    steps: tuple[Node, ...]  # the nodes that own the transition parameters: one if tied, else one per step
    inputs: tuple[Node, ...]  # likewise for the emissions
    file_bytes: int

    def initial(self) -> np.ndarray:
        """p(z_0), float32 [H]."""
        return self._dense(self.root)[0]

    def transition(self) -> np.ndarray:
        """p(z_{t+1} | z_t), rows are z_t: float32 [H, H] if tied over time, else [T-1, H, H]."""
        if self.length == 1:
            self._check_expansion((self.num_states, self.num_states))
            return np.full((self.num_states,) * 2, 1.0 / self.num_states, np.float32)
        if len(self.steps) == 1:
            return self._dense(self.steps[0])
        self._check_expansion((len(self.steps), self.num_states, self.num_states))
        return np.stack([self._dense(node) for node in self.steps])

    def emission(self) -> np.ndarray:
        """p(x_t | z_t), float32 [H, V] (a view of the file) if tied over time, else [T, H, V]."""
        tables = [node.params.reshape(self.num_states, self.vocab_size) for node in self.inputs]
        if len(tables) == 1:
            return tables[0]
        self._check_expansion((len(tables), self.num_states, self.vocab_size))
        return np.stack(tables)

    def _dense(self, node: Node) -> np.ndarray:
        """The matrix of a sum layer: W[parent, child], zero where no edge is."""
        count, rows, columns = node.params.shape
        blocks = self.num_states // columns
        if node.blocks == blocks == count == 1:
            weights = node.params[0]
        else:
            self._check_expansion((node.size, self.num_states))
            weights = np.zeros((node.blocks, rows, blocks, columns), np.float32)
            weights[node.edges[0], :, node.edges[1], :] = node.params
            weights = weights.reshape(node.size, self.num_states)
        if node.zeros is None:
            return weights
        held = np.zeros((node.blocks, rows, blocks, columns), np.bool_)
        held[node.edges[0], :, node.edges[1], :] = node.zeros
        return np.where(held.reshape(weights.shape), np.float32(0), weights)

    def _check_expansion(self, shape: tuple[int, ...]) -> None:
        """Sparse and partly tied files may grow when made dense, but not without measure."""
        size, limit = 4 * int(np.prod(shape, dtype=object)), 16 * self.file_bytes + 2**28
        if size > limit:
            raise ValueError(
                f"{self.origin}: {self.file_bytes} bytes would become a dense array {shape} of {size} bytes; refused"
            )


def open_chain(path: str | os.PathLike) -> Chain:
    """Check that a `.jpc` file holds an HMM and find its parts, reading no parameters.

    Raises:
      ValueError: as `read_nodes`; or the circuit is no HMM over the variables 0..T-1 in this order.
      FileNotFoundError: no such file.
    """
    origin, nodes = str(path), read_nodes(path)
    root, inputs, steps = _walk(nodes, origin)
    length, num_states = len(inputs), nodes[inputs[0]].size
    vocab_size = nodes[inputs[0]].num_categories
    owners = list(dict.fromkeys(_owner(nodes, index, origin) for index in inputs))
    step_owners = list(dict.fromkeys(_owner(nodes, index, origin) for index in steps))
    for index in (*inputs, *owners):
        if (nodes[index].size, nodes[index].num_categories) != (num_states, vocab_size):
            raise ValueError(f"{origin}: node {index}: {nodes[index].size} states over {nodes[index].num_categories} "
                             f"categories, where the first position has {num_states} over {vocab_size}")  # fmt: skip
    for index in owners:
        if nodes[index].params.size != num_states * vocab_size:
            raise ValueError(
                f"{origin}: node {index}: {nodes[index].params.size} emission parameters, {num_states} states of "
                f"{vocab_size} categories need {num_states * vocab_size}"
            )
    for index in (*step_owners, len(nodes) - 1):
        _check_sum(nodes, index, num_states, f"{origin}: node {index}")
    _owner(nodes, len(nodes) - 1, origin)

    def expand(indices: list[int], owning: list[int]) -> tuple[Node, ...]:
        return tuple(nodes[i] for i in (owning if len(owning) == 1 else (_owner(nodes, j, origin) for j in indices)))

    return Chain(
        origin, length, num_states, vocab_size, root.normalization, root,
        steps=expand(steps, step_owners), inputs=expand(inputs, owners), file_bytes=os.path.getsize(path),
    )  # fmt: skip


def _walk(nodes: list[Node], origin: str) -> tuple[Node, list[int], list[int]]:
    """Follow the chain from the root: (root, input of each position, sum of each step t→t+1)."""

    def fail(index: int, reason: str) -> None:
        raise ValueError(f"{origin}: node {index}: {reason}; only hidden Markov models are read")

    def child(index: int, which: int) -> int:
        number = nodes[index].children[which]
        if not 0 <= number < index:
            fail(index, f"its child {number} does not stand before it")
        return number

    index = len(nodes) - 1
    root, inputs, steps = nodes[index], [], []
    if root.kind != "Sum" or root.size != 1:
        fail(index, "the root is not a sum of one node")
    while True:
        if nodes[index].kind != "Sum" or len(nodes[index].children) != 1:
            fail(index, "not a sum over one product")
        index = child(index, 0)
        product = nodes[index]
        if product.kind != "Product" or len(product.children) not in (1, 2):
            fail(index, "not a product of an input and what follows")
        below = sorted((child(index, i) for i in range(len(product.children))), key=lambda i: nodes[i].kind)
        if [nodes[i].kind for i in below] != ["Input", "Sum"][: len(below)]:
            fail(index, "not a product of an input and what follows")
        # The shape first: the number of blocks is only a claim until the edges are there.
        fits = product.edges.shape == (product.blocks, len(below))
        if not fits or not (product.edges == np.arange(product.blocks)[:, None]).all():
            fail(index, "the product crosses the blocks of its children")
        for i in below:
            if (nodes[i].blocks, nodes[i].block_size) != (product.blocks, product.block_size):
                fail(index, "the blocks of the product and of its children differ")
        if nodes[below[0]].variable != len(inputs):
            fail(below[0], f"variable {nodes[below[0]].variable} stands at position {len(inputs)}")
        inputs.append(below[0])
        if len(below) == 1:
            break
        index = below[1]
        steps.append(index)
    if len(nodes) != 3 * len(inputs):
        raise ValueError(f"{origin}: {len(nodes)} nodes, an HMM over {len(inputs)} positions has {3 * len(inputs)}")
    return root, inputs, steps


def _owner(nodes: list[Node], index: int, origin: str) -> int:
    """The node that holds the parameters which node `index` uses."""
    node = nodes[index]
    owner = index if node.source is None else node.source
    if not 0 <= owner < len(nodes) or nodes[owner].kind != node.kind:
        raise ValueError(f"{origin}: node {index}: shares its parameters with node {owner}, which is no {node.kind}")
    if nodes[owner].params is None:
        raise ValueError(f"{origin}: node {owner} has no parameters; was the circuit saved before it was initialised?")
    return owner


def _check_sum(nodes: list[Node], index: int, num_states: int, where: str) -> None:
    """The shapes of a sum layer that owns parameters, and its edges in range and unique."""
    node, below = nodes[index], nodes[nodes[index].children[0]]
    edges = node.edges
    if node.params is None:
        raise ValueError(f"{where} has no parameters; was the circuit saved before it was initialised?")
    if (
        edges.ndim != 2
        or edges.shape[0] != 2
        or node.params.shape != (edges.shape[1], node.block_size, below.block_size)
    ):
        raise ValueError(f"{where}: parameters {node.params.shape} do not fit edges {edges.shape} of blocks "
                         f"{node.block_size} x {below.block_size}")  # fmt: skip
    if node.zeros is not None and node.zeros.shape != node.params.shape:
        raise ValueError(f"{where}: zero_param_mask {node.zeros.shape} does not fit parameters {node.params.shape}")
    limits = np.array([[node.blocks], [below.blocks]])
    if ((edges < 0) | (edges >= limits)).any() or below.size != num_states:
        raise ValueError(f"{where}: edges point outside its {node.blocks} x {below.blocks} blocks")
    if len(np.unique(edges[0] * below.blocks + edges[1])) != edges.shape[1]:
        raise ValueError(f"{where}: the same edge stands twice")
