"""Analytic counts against XLA's own count of the same products, against abstract parameters, and worked by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from codd_jax.backbones import PRESETS, Transformer
from codd_jax.fitting.chips import CHIPS, find_chip, find_slice, memory_of
from codd_jax.fitting.costs import (
    CircuitShape,
    Cost,
    Split,
    StepShape,
    activation_bytes,
    all_reduce_bytes,
    attention_cost,
    circuit_bytes,
    circuit_costs,
    floors,
    parameter_bytes,
    projection_cost,
    step_costs,
)
from codd_jax.sharding import partition_spec

LLADA, DREAM = PRESETS["llada-8b"], PRESETS["dream-7b"]
TRUE_CIRCUIT = CircuitShape(1024, 126464, 32)


def test_counts_of_the_large_backbone_worked_by_hand():
    costs = step_costs(LLADA, StepShape(1, 768), TRUE_CIRCUIT)
    assert costs["projections"].flops == pytest.approx(2 * 6.98e9 * 768, rel=1e-3)
    assert costs["projections"].bytes == pytest.approx(14e9, rel=0.01)
    assert costs["attention"].flops == pytest.approx(0.31e12, rel=0.01) and costs["attention"].bytes == 0
    assert costs["head"].flops == pytest.approx(33.2e9, rel=0.01)
    assert costs["leaf"].flops == pytest.approx(8.29e9, rel=0.01)
    assert costs["leaf"].bytes == pytest.approx(518e6 + 16.2e6, rel=0.01)
    assert costs["messages"].flops == 2 * 31 * 1024**2


@pytest.mark.parametrize("preset", ["llada-27m", "dream-1m"])
def test_a_layer_counts_what_xla_counts(preset):
    batch, length = 2, 128

    def counted(layers: int) -> float:
        config = dataclasses.replace(PRESETS[preset], num_layers=layers)
        graphdef, params = nnx.split(Transformer.abstract(config, layout="unrolled"))
        tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
        encode = jax.jit(lambda params, tokens: nnx.merge(graphdef, params).encode(tokens))
        return encode.lower(params, tokens).compile().cost_analysis()["flops"]

    config, shape = PRESETS[preset], StepShape(batch, length, value_bytes=4)
    expected = projection_cost(config, shape, layers=1).flops + attention_cost(config, shape, layers=1).flops
    # XLA adds what is not a product: norms, rotary embedding, softmax; the larger the smaller the model.
    assert 1 <= (counted(2) - counted(1)) / expected < (1.03 if preset == "llada-27m" else 1.2)


@pytest.mark.parametrize("config", [LLADA, DREAM, dataclasses.replace(LLADA, tie_embeddings=True)])
@pytest.mark.parametrize("model", [1, 4, 8])
def test_parameter_bytes_are_those_of_the_sharded_arrays(config, model):
    state = nnx.state(Transformer.abstract(config, jnp.bfloat16), nnx.Param)
    exact = sum(
        2 * math.prod(param.shape) // (model if "model" in partition_spec(path, len(param.shape), config, model) else 1)
        for path, param in nnx.to_flat_state(state)
    )
    assert parameter_bytes(config, split=Split(model=model)) == pytest.approx(exact, rel=1e-4)
    if model == 1:
        assert exact == 2 * config.num_params


def test_devices_share_what_divides():
    shape = StepShape(4, 512)
    whole, parts = step_costs(LLADA, shape, TRUE_CIRCUIT), step_costs(LLADA, shape, TRUE_CIRCUIT, Split(2, 4))
    for name in ("projections", "attention", "head", "leaf"):
        assert parts[name].flops == whole[name].flops / 8
    assert parts["messages"].flops == whole["messages"].flops / 2
    # Dream's four key/value heads do not divide by eight: these two products are done on every device.
    both, kv = projection_cost(DREAM, shape, Split(1, 8)), 2 * DREAM.width * 4 * 128
    alone = DREAM.width * (2 * 28 * 128 + 3 * 18944 / 8) + kv  # nor do 28 heads
    assert both.bytes == 2 * DREAM.num_layers * alone
    assert step_costs(LLADA, StepShape(1, 512), None, Split(2, 1)) == step_costs(LLADA, StepShape(1, 512))


def test_a_cached_step_is_bound_by_reading():
    chip = find_chip("NVIDIA H200")
    cached = step_costs(LLADA, StepShape(1, 768, computed=32))
    assert cached["projections"].flops == pytest.approx(2 * 6.98e9 * 32, rel=1e-3)
    assert cached["attention"].bytes == 2 * (768 - 32) * 4096 * 2 * 32
    bound = floors(cached, chip)
    assert bound.memory > 5 * bound.arithmetic and bound.together == pytest.approx(bound.memory, rel=0.05)
    full = floors(step_costs(LLADA, StepShape(1, 768)), chip)
    assert full.arithmetic > 2 * full.memory


def test_any_order_and_untied_circuits_cost_more():
    shape = StepShape(2, 64, ranked=8)
    tied, free = CircuitShape(16, 100, 8), CircuitShape(16, 100, 8, tied=False)
    drawn = circuit_costs(tied, dataclasses.replace(shape, draws=3))
    assert drawn["any_order"].flops == 3 * (2 * 2 * 8 * 16 * 100 + 2 * 2 * 7 * 2 * 16 * 16)
    assert circuit_bytes(tied) == 4 * (16 + 256 + 1600) and circuit_bytes(free) == 4 * (16 + 7 * 256 + 8 * 1600)
    assert circuit_bytes(tied, Split(1, 4)) == 4 * (16 + 256 + 400)
    assert circuit_costs(CircuitShape(16, 100, 8, emission_bytes=2), shape)["leaf"].precision == "split"


def test_working_memory_grows_with_scores_unless_attention_is_fused():
    long = StepShape(1, 4096)
    unfused, fused = (activation_bytes(LLADA, dataclasses.replace(long, fused_attention=x)) for x in (False, True))
    assert unfused - fused > 32 * 4096**2 * 4
    assert activation_bytes(LLADA, StepShape(1, 4096, computed=32)) > 2 * 4096 * 4096 * 2 * 32
    # At a short length it is the logits that count.
    assert activation_bytes(LLADA, StepShape(8, 64), TRUE_CIRCUIT) == 5 * 4 * 8 * 32 * 126464


def test_all_reduces():
    stream = 2 * 768 * 4096 * 2
    assert all_reduce_bytes(LLADA, StepShape(2, 768), Split(1, 8)) == 65 * stream * 14 // 8
    assert all_reduce_bytes(LLADA, StepShape(2, 768), Split(2, 1)) == 0


def test_data_sheets():
    assert find_chip("TPU v5 lite").name == "v5e" and find_chip("TPU v5p").name == find_chip("TPU v5").name == "v5p"
    assert find_chip("NVIDIA H100 80GB HBM3").memory_bytes == 80 * 10**9 and find_chip("cpu") is None
    assert memory_of(jax.devices("cpu")[0]) > 2**28
    assert find_slice("v5e:2x4") == (CHIPS["TPU v5 lite"], 8) and find_slice("v4:2x2x4") == (CHIPS["TPU v4"], 16)
    for chip in CHIPS.values():
        assert Cost(chip.bfloat16_flops, 0).seconds(chip) == (1, 0)
        assert Cost(chip.bfloat16_flops, 0, "split").seconds(chip) == (2, 0)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: StepShape(0, 8), "batch is 0"),
        (lambda: StepShape(1, 8, ranked=9), r"ranked \(9\) is more than the row's length \(8\)"),
        (lambda: StepShape(1, 8, ranked=8, computed=9), r"computed \(9\)"),
        (lambda: CircuitShape(0, 8, 8), "num_states is 0"),
        (lambda: find_slice("v9:2x2"), "one of v4, v5e, v5p, v6e, a colon"),
        (lambda: find_slice("v5e:0x2"), "'v5e:0x2' is no TPU slice"),
    ],
)
def test_shapes_are_checked(build, said):
    with pytest.raises(ValueError, match=said):
        build()
