"""Where PyJuice is installed: it loads the files that are written here, and finds the same parameters in them."""

import numpy as np
import pytest

from codd_jax.circuits import HMM
from codd_jax.io import jpc

pyjuice = pytest.importorskip("pyjuice")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("states", [4, 6])
def test_pyjuice_loads_written_files(tmp_path, tied, states):
    length, vocab = 4, 5
    random = np.random.default_rng(0)

    def rows(*shape):
        table = random.random(shape, np.float32)
        return table / table.sum(-1, keepdims=True)

    lead_a, lead_e = ((), ()) if tied else ((length - 1,), (length,))
    arrays = rows(states), rows(*lead_a, states, states), rows(*lead_e, states, vocab)
    jpc.write(tmp_path / "c.jpc", HMM(*arrays, length=length))
    tokens = random.integers(0, vocab, length)
    log_likelihood = np.log(brute_force(pyjuice.load(str(tmp_path / "c.jpc")), tokens))
    np.testing.assert_allclose(log_likelihood, np.log(forward(*arrays, tokens)), rtol=1e-5)


def brute_force(node, tokens):
    """p(tokens) by PyJuice's own graph: its nodes, edges, ties and parameters, evaluated from the leaves up."""
    values = {}
    for ns in node:
        owner = ns._source_node if ns._source_node is not None else ns
        if ns.is_input():
            (variable,) = ns.scope.to_list()
            table = owner._params.numpy().reshape(ns.num_nodes, -1)
            values[ns] = table[:, tokens[variable]].astype(np.float64)
        elif ns.is_prod():
            edges = ns.edge_ids.numpy()
            parts = [values[child].reshape(-1, ns.block_size)[edges[:, i]] for i, child in enumerate(ns.chs)]
            values[ns] = np.prod(parts, axis=0).reshape(-1)
        else:
            (child,) = ns.chs
            total = np.zeros((ns.num_node_blocks, ns.block_size))
            below = values[child].reshape(-1, child.block_size)
            for k, (parent, source) in enumerate(owner.edge_ids.numpy().T):
                total[parent] += owner._params.numpy()[k].astype(np.float64) @ below[source]
            values[ns] = total.reshape(-1)
    return values[ns][0]


def forward(initial, transition, emission, tokens):
    """p(tokens) by the forward recursion."""
    alpha = initial.astype(np.float64)
    for t, token in enumerate(tokens):
        if t:
            alpha = alpha @ (transition if transition.ndim == 2 else transition[t - 1])
        alpha = alpha * (emission if emission.ndim == 2 else emission[t])[:, token]
    return alpha.sum()
