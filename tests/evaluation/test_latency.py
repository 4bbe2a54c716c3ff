"""The latency benchmark's cases, its table, and what it says where the public loop cannot run."""

import pytest
from flax import nnx

from codd_jax.backbones import PRESETS, Transformer
from codd_jax.evaluation.latency import Workload
from codd_jax.evaluation.latency_report import plot, table
from codd_jax.evaluation.peer import PytorchPeer

WORK = Workload(
    prompt_length=8,
    gen_length=16,
    block_length=8,
    batches=(1, 2),
    steps=(4,),
    methods=("backbone", "ao"),
    thresholds=(0.9,),
)


def test_every_combination_is_a_case_that_can_be_decoded():
    cases = WORK.cases()
    assert len(cases) == 2 * (1 + 1) * 2
    assert {WORK.config(case).coupling for case in cases} == {"none", "any_order"}
    assert WORK.config({"threshold": 0.9, "method": "backbone", "cache": "none"}).threshold == 0.9
    assert not any(WORK.config(case).stop_at_eos for case in cases)


def test_table_and_plot_show_every_case(tmp_path):
    answers = [
        {**case, "seconds_per_sample": 2.0, "tokens_per_second": 8.0, "steps_used": 4.0, "tokens_per_forward": 4.0}
        | {"overhead": 0.5 if case["method"] == "ao" else 0.0}
        for case in WORK.cases()
    ]
    part = {"batch": 1, "seconds": {"step": 0.004, "selection": 0.001}, "floor": {"step": 0.003}}
    result = {
        "rates": {"flops_per_second": 1e11, "bytes_per_second": 1e10, "dtype": "float32"},
        "answers": answers,
        "parts": [{**part, "share_of_floor": {"step": 0.75}}],
        "peer": {
            "answers": [{"steps": 4, "seconds_per_sample": 4.0, "speed_up": 2.0, "tokens_equal": True}],
            "forward_speed_up": 1.25,
        },
    }
    text = table(result)
    assert text.count("| CoDD, any-order |") == 4 and text.count("+50.0%") == 4
    assert "| 1 | step | 4.00 | 3.00 | 75% |" in text
    assert "| 4 | 4.000 | 2.00 | True |" in text and "1.25 times" in text
    plot(result, tmp_path / "latency.png")
    assert (tmp_path / "latency.png").stat().st_size > 1000


def test_a_missing_checkout_or_family_is_named(tmp_path):
    backbone = Transformer(PRESETS["llada-1m"], rngs=nnx.Rngs(0))
    with pytest.raises(FileNotFoundError, match="no checkout of the public PyTorch CoDD"):
        PytorchPeer(["python"], tmp_path, backbone)
    (tmp_path / "eval" / "llada").mkdir(parents=True)
    (tmp_path / "eval" / "llada" / "llada_generate.py").touch()
    with pytest.raises(ImportError, match="--pytorch-python"):
        PytorchPeer(["false"], tmp_path, backbone).__enter__()
    with pytest.raises(ValueError, match="this backbone is dream"):
        PytorchPeer(["python"], tmp_path, Transformer(PRESETS["dream-1m"], rngs=nnx.Rngs(0)))
