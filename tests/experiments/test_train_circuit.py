"""Training circuits from the command line: the demo, a file of one's own, what comes out, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from codd_jax import CoDD, DecodeConfig
from codd_jax.backbones import Transformer
from codd_jax.circuits import HMM
from codd_jax.io import jpc
from codd_jax.io.circuit import load_circuit
from codd_jax.io.safetensors import save_huggingface
from codd_jax.tokenizer import load_tokenizer
from codd_jax.training import throughput
from codd_jax.training.comparison import CONTENDERS, Contender, at_rates, compare_rules
from codd_jax.training.potentials import Head, MemoryWindows, WindowPotentials
from experiments import compare_optimisers, train_circuit
from experiments.demo_task import circuit as demo_circuit
from experiments.demo_task.tokenizer import save_tokenizer
from experiments.demo_task.train import backbone_config

SHORT = ["--states", "4", "--batch_size", "16", "--steps", "4", "--masks", "1", "--validate_every", "2"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A narrow random backbone with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("bundle")
    save_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    config = dataclasses.replace(
        backbone_config(tokenizer), width=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, ffn_width=24
    )
    save_huggingface(Transformer(config, rngs=nnx.Rngs(0)), config, folder)
    return folder


@pytest.fixture(autouse=True)
def small_demo(monkeypatch, bundle):
    """A demo of 40 problems, and 16 held-out ones, for that backbone."""
    monkeypatch.setattr(demo_circuit, "EXAMPLES", 40)
    monkeypatch.setattr(demo_circuit, "BUNDLE", bundle)
    monkeypatch.setitem(demo_circuit.DEFAULTS, "held_out", 16)


def run(capsys, *words):
    """What the script prints."""
    train_circuit.main([str(word) for word in words])
    return capsys.readouterr().out


def refused(capsys, *words):
    """The message that the script ends with."""
    with pytest.raises(SystemExit) as stopped:
        train_circuit.main([str(word) for word in words])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def write(path, count=24):
    """A JSONL file of questions and answers in the demo's words."""
    pairs = [{"question": f"Tom has {n} apples.", "answer": f"#### {n}"} for n in range(2, 2 + count)]
    path.write_text("\n".join(map(json.dumps, pairs)))
    return path


def test_the_demo_trains_a_circuit_that_decodes(capsys, tmp_path, bundle):
    words = [*SHORT, "--output_dir", tmp_path, "--to_jpc"]
    said = run(capsys, *words)
    assert "4 steps" in said and "backbone" in said and str(tmp_path / "circuit") in said
    hmm = load_circuit(tmp_path / "circuit").validate()
    assert (hmm.num_states, hmm.length) == (4, 32)
    again = jpc.read(tmp_path / "circuit.jpc")
    np.testing.assert_allclose(again.emission, hmm.emission, atol=1e-6)
    history = json.loads((tmp_path / "history.json").read_text())
    assert [record["step"] for record in history["validation"]] == [2, 4]
    assert (tmp_path / "history.png").stat().st_size > 10_000
    assert run(capsys, *words).splitlines()[-3:] == said.splitlines()[-3:], "finished: nothing is trained again"
    np.testing.assert_array_equal(load_circuit(tmp_path / "circuit").emission, hmm.emission)
    model = CoDD.from_pretrained(bundle, circuit=tmp_path / "circuit", dtype="float32")
    decode = DecodeConfig(steps=2, gen_length=32, block_length=32, pc_frac=None)
    assert len(model.generate(["Tom has 2 apples."], decode).text) == 1
    # Other settings for what was trained, and for the states that were stored.
    assert "rate: None before, 0.1 now" in refused(capsys, *words, "--rate", "0.1")
    assert "masks: 1 before, 2 now" in refused(capsys, *words[:-3], "--masks", 2, "--output_dir", tmp_path)
    # Heads on top of it, from the same states.
    modulated = tmp_path / "modulated"
    run(
        capsys, *SHORT, "--init", tmp_path / "circuit", "--modulation", "latent,noise", "--store", tmp_path / "states",
        "--output_dir", modulated,
    )  # fmt: skip
    assert json.loads((modulated / "history.json").read_text())["settings"]["rate"] == 0.02
    heads = load_circuit(modulated / "circuit").modulation
    assert heads.kinds == ("latent",) and heads.noise and float(np.abs(heads.latent).max()) > 0


def test_a_file_of_ones_own_on_the_fly(capsys, tmp_path, bundle):
    data = write(tmp_path / "data.jsonl")
    words = ["--llada_ckpt", bundle, "--data", data, "--held_out", 4, "--dtype", "float32", "--on_the_fly"]
    words += ["--windows_per_row", 1, "--window", 8, *SHORT[:6], "--output_dir", tmp_path / "out", "--rule", "em"]
    run(capsys, *words)
    assert load_circuit(tmp_path / "out" / "circuit").length == 8
    assert not (tmp_path / "out" / "states").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "x.jsonl"], "--data without a backbone"),
        (["--llada_ckpt", "a", "--dream_ckpt", "b"], "2 backbones are given"),
        (["--llada_ckpt", "bundle"], "--data is missing"),
        (["--llada_ckpt", "bundle", "--data", "gone.jsonl"], "no data at gone.jsonl"),
        (["--on_the_fly", "--store", "x"], "give one of them"),
        (["--rule", "newton"], "rule 'newton' is unknown"),
        (["--init", "good"], "init is 'good'; it must be one of uniform, data"),
        (["--modulation", "latent", "--to_jpc"], "cannot hold modulation"),
        (["--modulation", "sound"], "it must name some of"),
        (["--rule", "dual_ratio"], "set normalization='local'"),
        (["--batch_size", "16", "--chunk", "5"], "16 windows cannot be split over 1 devices in chunks of 5"),
    ],
)
def test_what_is_refused(capsys, tmp_path, bundle, words, said):
    assert said in refused(capsys, *(bundle if word == "bundle" else word for word in words), "--output_dir", tmp_path)


def test_holding_out_everything_is_refused(capsys, tmp_path, bundle):
    data = write(tmp_path / "data.jsonl", 3)
    message = refused(capsys, "--llada_ckpt", bundle, "--data", data, "--held_out", 3, "--output_dir", tmp_path)
    assert "3 of 3 examples are to be held out" in message


def test_a_step_is_timed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(throughput.measure_throughput, "__kwdefaults__",
                        {**throughput.measure_throughput.__kwdefaults__, "vocab": 96, "width": 16})  # fmt: skip
    monkeypatch.setattr(throughput, "machine_rates", lambda dtype, size: (1e10, 1e10))
    words = ["--states", "8", "--window", "4", "--batch_size", "4", "--chunk", "2", "--output_dir", str(tmp_path)]
    said = run(capsys, "--true_size", "--dtype", "float32", *words)
    result = json.loads((tmp_path / "throughput.json").read_text())
    assert f"{result['windows_per_second']:.2f} windows/s" in said and "arithmetic floor" in said
    # Head, leaves and their gradient: a product of [4, D] or [4, H] with V columns for each of the 4 windows.
    assert result["flops"] == 2 * 4 * 4 * 96 * (16 + 8 + 8)
    assert result["floor_seconds"] == pytest.approx(result["flops"] / 1e10) and result["peak_bytes"] > 1e7


def small_world(seed):
    """Windows and a start for the comparison."""
    keys = jax.random.split(jax.random.key(seed), 3)
    head = Head(jax.random.normal(keys[0], (9, 6)), None)
    tokens = np.tile(np.arange(4, dtype=np.int32), (16, 1))
    windows = WindowPotentials.of(head.weight[tokens] / 4, tokens, np.ones((16, 4), bool))
    return MemoryWindows(head, windows, windows, batch_size=8), HMM.random(keys[1], 4, 3, 9, scale=0.3)


def test_rules_are_compared_and_a_run_is_not_repeated(tmp_path):
    contenders = [CONTENDERS[0], Contender("too fast", {"rule": "adam", "rate": float("inf")})]
    options = {"contenders": contenders, "seeds": (0, 1), "seconds": 0.05, "progress": False}
    result = compare_rules({"tiny": small_world}, tmp_path, **options)
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["adam"]["runs"] == 2 and rows["adam"]["failed"] == 0 and rows["too fast"]["failed"] == 2
    assert rows["adam"]["coupled_range"][0] <= rows["adam"]["coupled"] <= rows["adam"]["coupled_range"][1]
    table = (tmp_path / "comparison.md").read_text()
    assert "| tiny | adam |" in table and "| tiny | too fast | failed |" in table
    assert (tmp_path / "comparison.png").stat().st_size > 5_000
    again = compare_rules({"tiny": None}, tmp_path, **options)
    assert again == json.loads((tmp_path / "comparison.json").read_text())
    with pytest.raises(ValueError, match=r"seconds: 0\.05 before, 1\.0 now"):
        compare_rules({"tiny": None}, tmp_path, **{**options, "seconds": 1.0})


def test_rates_are_multiples_of_the_rules_own():
    tuned = at_rates([Contender("adam, local", {"rule": "adam", "rate": 0.2, "normalization": "local"})], [0.5, 2.0])
    assert [(c.name, c.settings["rate"]) for c in tuned] == [("adam, local at 0.1", 0.1), ("adam, local at 0.4", 0.4)]
    assert all(c.settings["normalization"] == "local" for c in tuned)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rules", "newton"], "rule newton is not in the table; known are adam,"),
        (["--ckpt", "x"], "give both or neither"),
        (["--only", "own"], "--ckpt and --data"),
    ],
)
def test_comparisons_that_cannot_be(capsys, tmp_path, words, said):
    with pytest.raises(SystemExit):
        compare_optimisers.main([*words, "--output_dir", str(tmp_path)])
    assert said in capsys.readouterr().err
