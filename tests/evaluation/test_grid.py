"""Many runs in one command: what a grid asks for, what it refuses, and that sweeps compile and load nothing again."""

import argparse
import json
import shutil

import jax
import pytest

from codd_jax import decoding
from codd_jax.circuits import HMM
from codd_jax.evaluation import grid
from codd_jax.evaluation.flags import Parser, add_benchmark_flags
from codd_jax.evaluation.presets import TASKS
from codd_jax.io.circuit import save_circuit
from codd_jax.model import CoDD

PRESET = TASKS["gsm8k"]


def parse(*argv: str) -> argparse.Namespace:
    parser = Parser(prog="benchmark")
    add_benchmark_flags(parser, PRESET)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("content", "runs"),
    [
        ("{num_steps: [64, 128], pc_frac: [0.3, 0.7]}", 4),
        ('[{"coupling": "none"}, {"alg": ["margin", "entropy"], "reverse_frac": [true, false]}]', 5),
    ],
)
def test_a_file_is_every_combination(tmp_path, content, runs):
    (tmp_path / "grid.yaml").write_text(content)
    lines = grid.read_grid(tmp_path / "grid.yaml")
    assert len(lines) == len(set(lines)) == runs
    assert lines[-1] in ("--num_steps 128 --pc_frac 0.7", "--alg entropy")


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1, 2]", "no mapping"), ("", "no mapping"), ("{a: {b: 1}}", "a needs a value"), ("{a: [}", "neither YAML")],
)
def test_bad_files_are_refused(tmp_path, content, message):
    (tmp_path / "grid.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        grid.read_grid(tmp_path / "grid.yaml")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        grid.read_grid(tmp_path / "other.yaml")


def test_runs_change_the_shared_flags():
    args = parse("--llada_ckpt", "A/b", "--num_steps", "64", "--tag", "sweep", "--run", "--num_steps 128 --tag x",
                 "--run", "--cache dual --threshold 0.9",
                 "--run", "--cache prefix --cache_refresh 4 --threshold_factor 1.5")  # fmt: skip
    runs = grid.read_runs(args, PRESET)
    assert [options.decoding for _, options in runs] == [
        {"steps": 128},
        {"steps": 64, "threshold": 0.9, "cache": "dual"},
        {"steps": 64, "threshold_factor": 1.5, "cache": "prefix", "cache_refresh": 4},
    ]
    assert [options.output_dir for _, options in runs] == ["results/sweep"] * 3
    names = [options.run_name("gsm8k") for _, options in runs]
    assert names == [
        "0shot_llada_gsm8k_num_steps=128_x",
        "0shot_llada_gsm8k_num_steps=64_threshold=0.9_cache=dual",
        "0shot_llada_gsm8k_num_steps=64_threshold_factor=1.5_cache=prefix_cache_refresh=4",
    ]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["--num_stepz 4"], "--run '--num_stepz 4': unrecognized arguments"),
        (["--num_steps x"], "is not a whole number"),
        (["--output_dir d"], "--output_dir is for the whole command"),
        (["--seed 1", "--seed 1"], "would share the folder"),
        (["--alg 'x"], "No closing quotation"),
        (["--alg best"], "known are"),
    ],
)
def test_bad_runs_are_refused(runs, message):
    words = [word for line in runs for word in ("--run", line)]
    with pytest.raises(ValueError, match=message):
        grid.read_runs(parse("--llada_ckpt", "A/b", *words), PRESET)


@pytest.fixture
def model_flags(fixtures_dir, tmp_path):
    """A tiny LLaDA and a random circuit."""
    folder = tmp_path / "llada_tiny"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(fixtures_dir / "llada_tiny" / name, folder)
    save_circuit(tmp_path / "circuit", HMM.random(jax.random.key(0), 8, 4, 384))
    return ["--llada_ckpt", str(folder), "--pc_ckpt", str(tmp_path / "circuit"), "--gen_length", "16"]


def test_a_sweep_of_numbers_loads_and_compiles_once(monkeypatch, model_flags, problems_file, data_cache, tmp_path):
    loads = []
    load = CoDD.from_pretrained
    monkeypatch.setattr(CoDD, "from_pretrained", lambda *args, **options: loads.append(args) or load(*args, **options))
    file = tmp_path / "sweep.yaml"
    file.write_text("{num_steps: [4, 8], pc_temperature: [0.1, 0.7], pc_frac: [0.3, 0.9]}")
    argv = [*model_flags, "--data", str(problems_file), "--limit", "2", "--batch_size", "2", "--tag", "sweep"]
    argv += ["--output_dir", str(tmp_path / "out"), "--grid", str(file)]
    before = decoding.run_block._cache_size()
    folder, failed = grid.run_grid(grid.read_runs(parse(*argv), PRESET), PRESET, progress=False)
    assert not failed and len(loads) == 1
    assert decoding.run_block._cache_size() - before == 1
    index = json.loads((folder / "grid.json").read_text())
    assert folder == tmp_path / "out" / "sweep" and len(index["runs"]) == 8
    for run in index["runs"]:
        summary = json.loads((folder / run["folder"] / "summary.json").read_text())
        assert summary["total"] == 2
        assert run["flags"] in (folder / run["folder"] / "log.txt").read_text()
    # The same command again finds everything done, another one adds to the index.
    argv = [*argv[:-2], "--run", "--num_steps 4 --pc_temperature 0.1 --pc_frac 0.3", "--run", "--coupling none"]
    folder, failed = grid.run_grid(grid.read_runs(parse(*argv), PRESET), PRESET, progress=False)
    assert not failed and len(loads) == 2
    assert len(json.loads((folder / "grid.json").read_text())["runs"]) == 9


def test_a_run_that_fails_is_logged_and_the_others_go_on(monkeypatch, model_flags, problems_file, data_cache, tmp_path):
    generate = CoDD.generate

    def memory_for_few_steps(model, prompts, config, **options):
        if config.steps == 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
        return generate(model, prompts, config, **options)

    monkeypatch.setattr(CoDD, "generate", memory_for_few_steps)
    argv = [*model_flags, "--data", str(problems_file), "--limit", "1", "--batch_size", "4"]
    argv += ["--output_dir", str(tmp_path / "out"), "--run", "--num_steps 8", "--run", "--num_steps 4"]
    folder, failed = grid.run_grid(grid.read_runs(parse(*argv), PRESET), PRESET, progress=False)
    ((name, reason),) = failed.items()
    assert "num_steps=8" in name and "trying to allocate 9 bytes" in reason
    assert "4 rows of" in reason and "--batch_size 2" in reason
    assert "failed: the memory of" in (folder / name / "log.txt").read_text()
    done = [run["name"] for run in json.loads((folder / "grid.json").read_text())["runs"] if run["name"] != name]
    assert json.loads((folder / done[0] / "summary.json").read_text())["total"] == 1
