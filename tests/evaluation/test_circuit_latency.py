"""The message algorithms that the benchmark compares compute one thing, and its table shows every part."""

import jax
import numpy as np
import pytest

from codd_jax import circuits
from codd_jax.circuits import HMM
from codd_jax.evaluation.circuit_latency import ALGORITHMS, CircuitWork, agree, circuit_table, measure_circuit
from tests.oracles.hmm_enumeration import Case


def test_every_algorithm_gives_the_enumerated_log_partition():
    hmm = HMM.random(jax.random.key(0), 4, 3, 5)
    log_phi = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (2, 4, 5)))
    known = np.zeros(4, bool)
    leaf = circuits.leaf_values(hmm, log_phi, np.zeros((2, 4), np.int32), np.broadcast_to(known, (2, 4)))
    for row in range(2):
        expected = Case.of(hmm, log_phi[row], np.zeros(4, np.int32), known, None).log_partition()
        for name, algorithm in ALGORITHMS.items():
            np.testing.assert_allclose(algorithm(hmm, leaf)[row], expected, rtol=1e-5, err_msg=name)


def test_all_parts_are_measured_and_shown():
    result = measure_circuit(CircuitWork(8, 16, 4, batches=(1, 2), repeats=1), progress=False)
    assert {(row["batch"], row["part"]) for row in result["parts"]} >= {(1, name) for name in ALGORITHMS}
    assert all(row["seconds"] > 0 for row in result["parts"])
    table = circuit_table(result)
    assert all(name in table for name in ALGORITHMS) and table.count("leaf product") == 2


def test_algorithms_that_disagree_are_refused():
    with pytest.raises(FloatingPointError, match="disagree by 1"):
        agree([np.zeros(2), np.array([0.0, 1.0])])
