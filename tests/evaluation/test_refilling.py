"""The count of steps with refilled rows and without, on a tiny backbone; and what is said where memory is too small."""

import dataclasses

import pytest
from flax import nnx

from codd_jax import CoDD, Transformer
from codd_jax.backbones import PRESETS
from codd_jax.evaluation.memory import advice, explain
from codd_jax.evaluation.refilling import Mix, measure_refilling
from codd_jax.fitting.costs import CircuitShape

GIB = 2**30
pytestmark = pytest.mark.filterwarnings("ignore:.*steps")


def test_refilled_rows_spend_what_the_answers_need():
    small = {"num_layers": 1, "width": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "ffn_width": 16}
    ids = {"vocab_size": 64, "mask_id": 63, "eos_id": 62, "pad_id": 62}
    model = CoDD(Transformer(dataclasses.replace(PRESETS["llada-1m"], **small, **ids), rngs=nnx.Rngs(0)))
    mix = Mix(requests=60, batch_size=3, prompt_length=4, gen_length=16, block_length=4, mean_length=8)
    result = measure_refilling(model, mix)
    refilled, waiting = result["runs"]
    assert result["tokens_equal"] == [True]
    assert refilled["overhead"] == 0 and refilled["device_steps"] == refilled["used_steps"]
    assert waiting["overhead"] > 0.2 and waiting["device_steps"] > refilled["device_steps"]
    assert result["steps_of_an_answer"]["least"] < result["steps_of_an_answer"]["most"] == 16


def test_advice_names_batch_and_mesh_that_fit():
    config, circuit = PRESETS["llada-8b"], CircuitShape(1024, 126_464, 32)
    said = advice(config, circuit, 64, 768, None, 2, devices=8, memory=24 * GIB)
    assert "64 rows of 768 positions need" in said and "of 24 GiB" in said
    assert "--batch_size " in said and "--mesh data:" in said
    alone = advice(config, circuit, 8, 768, None, 4, devices=1, memory=24 * GIB)
    assert "--dtype bfloat16" in alone and "--batch_size" not in alone
    for size in (2, 4):
        small = advice(config, circuit, 8, 768, None, size, devices=1, memory=8 * GIB)
        assert "Neither a smaller batch nor a mesh of 1 device(s) would hold it; about" in small
    other = ValueError("something else")
    assert explain(other, config, circuit, 8, 768, None, 2) is other
