"""Will it fit: the report on this machine's own CPU and by estimate, the questions it refuses, and TPU slices."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from codd_jax.backbones import PRESETS
from experiments import fit

SMALL = ["--preset", "llada-1m", "--circuit", "16,512,8", "--block_length", "8", "--length", "64", "--batch", "2"]


def ask(capsys, tmp_path, *words: str) -> tuple[int, dict]:
    status = fit.main([*words, "--json", "--output_dir", str(tmp_path)])
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / f"{report['name']}.json").read_text()) == report
    return status, report


def test_a_small_model_on_this_machine(capsys, tmp_path):
    status, report = ask(capsys, tmp_path, *SMALL)
    assert status == 0 and report["fits"] is True and report["mesh"] == "data:1,model:1"
    assert report["weights"] == PRESETS["llada-1m"].num_params and report["dtype"] == "float32"
    compiled = report["compiled"]
    inputs = report["weight_bytes"] + report["circuit_bytes"]
    assert inputs <= compiled["argument_bytes"] < inputs + 4096
    assert compiled["peak_bytes"] >= compiled["argument_bytes"] + compiled["temporary_bytes"]
    assert 1 <= report["layer"]["ratio"] < 1.1 and report["floors"] is None


def test_a_checkpoint_without_a_circuit_but_with_kept_keys(capsys, tmp_path, fixtures_dir):
    words = ["--ckpt", str(fixtures_dir / "dream_tiny"), "--circuit", "none", "--length", "64", "--cache", "dual"]
    assert fit.main([*words, "--output_dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("dream_tiny: ") and "no circuit" in said and "leaf" not in said and "cache dual" in said
    assert "mesh data:1,model:1 fits (compiled in" in said


def test_estimates_need_no_compiler(capsys, tmp_path):
    status, report = ask(capsys, tmp_path, "--topology", "v5e:2x4", "--estimate")
    assert status == 0 and report["compiled"] is None and report["mesh"] == report["suggested_mesh"] == "data:1,model:8"
    assert set(report["floors"]) == {"arithmetic", "memory", "together", "links"}
    words = ["--topology", "v5e:2x4", "--estimate", "--output_dir", str(tmp_path)]
    assert fit.main([*words, "--mesh", "model:1"]) == 1
    said = capsys.readouterr().out
    assert "mesh data:1,model:1 does not fit (by estimate)" in said and "suggested: --mesh data:1,model:8" in said
    assert fit.main(["--topology", "v5e:1x1", "--estimate", "--output_dir", str(tmp_path)]) == 1
    assert "no mesh of these devices holds it; 2 of this kind would" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--circuit", "8,9,4"], "the circuit is over 9 tokens, the backbone over 126464"),
        (["--preset", "llada-1m", "--ckpt", "DIR"], "two backbones"),
        (["--ckpt", "/nowhere/at/all"], "neither an existing path nor a hub id"),
        (["--topology", "v5e"], "'v5e' is no TPU slice"),
        (["--topology", "v5e:2x4", "--mesh", "model:16"], "needs 16 devices and there are 8"),
        (["--topology", "v5e:2x4", "--mesh", "data:2"], "does not divide a batch of 1"),
        (["--length", "200000"], "exceeds the limit of 131072"),
        (["--train", "full", "--windows", "99"], "99 windows of 32 tokens are more than a row of 768 positions"),
        (["--train", "circuit", "--circuit", "none"], "nothing to train"),
        (["--train", "lora", "--batch", "6", "--accumulate", "4"], "cannot be worked through in 4 equal parts"),
    ],
)
def test_questions_that_make_no_sense_are_one_message(capsys, tmp_path, words, said):
    with pytest.raises(SystemExit) as left:
        fit.main([*words, "--estimate", "--output_dir", str(tmp_path)])
    shown = capsys.readouterr().err
    assert left.value.code == 2 and said in shown and "Traceback" not in shown


def test_a_small_update_on_this_machine(capsys, tmp_path):
    words = [*SMALL, "--train", "lora", "--rank", "4", "--windows", "4", "--dtype", "float32"]
    status, report = ask(capsys, tmp_path, *words)
    assert status == 0 and report["fits"] and report["train"] == "lora" and report["mesh"] == "data:1,model:1"
    config, circuit = PRESETS["llada-1m"], 16 * (1 + 16 + 512)
    assert report["trained"] == 4 * 4 * (4 * 256 + 3 * (128 + 384)) + circuit
    assert report["trained_bytes"] == 4 * report["trained"] and report["frozen_bytes"] == 4 * config.num_params
    # Adam's two moments, and its counters.
    assert 8 * report["trained"] <= report["optimiser_bytes"] < 8 * report["trained"] + 64
    inputs = report["trained_bytes"] + report["optimiser_bytes"] + report["frozen_bytes"]
    assert inputs <= report["compiled"]["argument_bytes"] < inputs + 4096
    assert 1 <= report["layer"]["ratio"] < 1.15


def test_a_step_of_circuit_training_on_this_machine(capsys, tmp_path):
    status, report = ask(capsys, tmp_path, *SMALL, "--train", "circuit", "--dtype", "float32")
    assert status == 0 and report["fits"] and report["train"] == "circuit"
    values = 4 * 16 * (1 + 16 + 512)
    assert report["trained_bytes"] == values and report["optimiser_bytes"] == 2 * values
    inputs = 3 * values + 4 * 512 * 128
    assert inputs <= report["compiled"]["argument_bytes"] < inputs + 32768


def test_a_slice_for_all_weights_and_one_for_lora(capsys, tmp_path):
    words = ["--topology", "v6e:2x4", "--estimate", "--batch", "8"]
    status, report = ask(capsys, tmp_path, "--train", "full", *words)
    assert status == 0 and report["suggested_mesh"] == "data:1,model:8"
    # 16 bytes a weight: float32 weights, gradients and two moments, of backbone and circuit.
    state = [report[f"{name}_bytes"] for name in ("trained", "optimiser", "gradient")]
    assert sum(state) == pytest.approx(16 * report["trained"] / 8, rel=0.01)
    spread = ask(capsys, tmp_path, "--train", "full", *words, "--mesh", "data:8", "--shard_over_data")[1]
    assert spread["fits"] and spread["optimiser_bytes"] == pytest.approx(report["optimiser_bytes"], rel=0.01)
    assert ask(capsys, tmp_path, "--train", "full", *words, "--mesh", "data:8")[0] == 1
    small = ask(capsys, tmp_path, "--train", "lora", "--topology", "v5e:2x4", "--estimate", "--batch", "8")
    assert small[0] == 0 and small[1]["trained"] < 0.03 * small[1]["weights"]
    assert ask(capsys, tmp_path, "--train", "full", "--topology", "v5e:2x4", "--estimate", "--batch", "8")[0] == 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_small_model_compiles_for_a_tpu_slice(tmp_path):
    root = pathlib.Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "experiments.fit", *SMALL, "--topology", "v5e:2x2", "--mesh", "data:2,model:2"]
    command += ["--json", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=root, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["fits"] and report["compiled"]["collectives"]["all-reduce"][0] >= 3
    assert report["compiled"]["argument_bytes"] < report["weights"] * 2


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_the_way_out_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit):
        fit.main([*SMALL, "--topology", "v5e:2x2", "--output_dir", str(tmp_path)])
    assert "requirements-tpu-compile.txt" in capsys.readouterr().err
