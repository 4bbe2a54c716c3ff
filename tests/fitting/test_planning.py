"""Meshes and memory by estimate."""

import dataclasses

from codd_jax.backbones import PRESETS
from codd_jax.fitting.chips import CHIPS, GIB
from codd_jax.fitting.costs import CircuitShape, Split, StepShape
from codd_jax.fitting.planning import devices_needed, estimate, rank_meshes

LLADA, V5E = PRESETS["llada-8b"], CHIPS["TPU v5 lite"]


def test_meshes_are_ranked_by_what_fits_and_then_by_speed():
    circuit, shape = CircuitShape(1024, LLADA.vocab_size, 32), StepShape(4, 768)
    ranked = rank_meshes(LLADA, shape, circuit, 8, V5E.memory_bytes, V5E)
    assert {(each.split.data, each.split.model) for each in ranked} == {
        (data, model) for data in (1, 2, 4) for model in (1, 2, 4, 8) if data * model <= 8
    }
    fitting = [each for each in ranked if each.fits]
    assert ranked[: len(fitting)] == fitting and [each.seconds for each in fitting] == sorted(
        each.seconds for each in fitting
    )
    assert fitting[0].split == Split(4, 2)  # fewest sums over devices
    assert not estimate(LLADA, shape, circuit, Split(4, 1), V5E.memory_bytes, V5E).fits
    unknown = rank_meshes(LLADA, shape, circuit, 8, None)
    assert all(each.fits and each.seconds is None for each in unknown) and unknown[0].split == Split(4, 1)
    assert devices_needed(LLADA, shape, circuit, 4 * GIB).split.model == 8
    assert devices_needed(LLADA, shape, circuit, 2**20) is None


def test_long_rows_fit_where_a_kernel_keeps_the_scores():
    circuit, shape = CircuitShape(1024, LLADA.vocab_size, 32), StepShape(32, 4096)
    fused = dataclasses.replace(shape, fused_attention=True)
    split = Split(1, 8)
    assert not estimate(LLADA, shape, circuit, split, V5E.memory_bytes, V5E).fits
    assert estimate(LLADA, fused, circuit, split, V5E.memory_bytes, V5E).fits
