"""The four benchmark scripts on the demo bundle, offline from local JSONL; what is refused before weights are read."""

import importlib
import json
import pathlib

import datasets
import pytest

from codd_jax.evaluation import TASKS, benchmark
from experiments.demo_task.decode import BUNDLE
from tests.oracles.task_problems import PROBLEMS
from tests.oracles.word_problems import QUESTIONS

ITEMS = {**PROBLEMS, "gsm8k": [{"question": question, "answer": answer} for question, answer in QUESTIONS]}


def script(name: str):
    """The module of a task's script."""
    return importlib.import_module(f"experiments.{name}")


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """Task name → a file of its problems; the data sets' cache stays out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    def write(name):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, ITEMS[name])) + "\n")
        return str(tmp_path / f"{name}.jsonl")

    return write


def refused(capsys, name: str, *argv: str) -> str:
    """Runs a script, expects exit code 2 and one message, and returns it."""
    with pytest.raises(SystemExit) as exit_info:
        script(name).main(list(argv))
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("name", TASKS)
def test_the_full_path_with_the_demos_bundle(capsys, tmp_path, problems, name):
    argv = ["--llada_ckpt", str(BUNDLE), "--data", problems(name), "--limit", "3", "--batch_size", "3"]
    argv += ["--gen_length", "16", "--num_steps", "2", "--pc_frac", "always", "--output_dir", str(tmp_path / "out")]
    script(name).main([*argv, *["--run_generated_code"] * TASKS[name].runs_code])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("accuracy ") and TASKS[name].headline in shown[0]
    folder = pathlib.Path(shown[-1]).parent
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["total"], summary["settings"]["task"]) == (3, name)
    assert summary["settings"]["decoding"]["coupling"] == "latent"
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert sorted(sample["doc_id"] for sample in samples) == [0, 1, 2]
    assert all(0 < sample["steps_used"] <= 2 for sample in samples)


@pytest.mark.parametrize(
    ("name", "argv", "message"),
    [
        ("mbpp", "--llada_ckpt A/b", "mbpp scores answers by running them"),
        (
            "mbpp",
            "--llada_ckpt A/b --run_generated_code --num_shot 2 --data X",
            "mbpp is asked without worked examples",
        ),
        ("gsm8k", "--llada_ckpt A/b --run_generated_code", "unrecognized arguments: --run_generated_code"),
        ("gsm8k", "--llada_ckpt A/b --cache_refresh 4", "--cache_refresh is 4 but cache='none'"),
        ("gsm8k", "--llada_ckpt A/b --threshold 0.9 --threshold_factor 1", "are two rules for the same choice"),
        ("gpqa", "--num_steps 64", "there is no model; give --llada_ckpt or --dream_ckpt"),
        ("math500", "--llada_ckpt A/b --task gpqa", "--task gpqa: this script evaluates math500"),
        ("math500", "--llada_ckpt A/b --data nowhere.jsonl", "no problems at nowhere.jsonl"),
    ],
)
def test_bad_command_lines(capsys, monkeypatch, name, argv, message):
    monkeypatch.setattr(benchmark, "load_model", lambda *_: pytest.fail("weights were loaded"))
    assert message in refused(capsys, name, *argv.split())


def test_scoring_that_lacks_packages_is_refused_before_weights_are_read(capsys, monkeypatch, tmp_path, problems):
    from lm_eval.tasks import TaskManager

    def load(self, names):
        raise ModuleNotFoundError("`sympy` is required; pip install lm-eval[math]")

    monkeypatch.setattr(TaskManager, "load", load, raising=False)
    monkeypatch.setattr(benchmark, "load_model", lambda *_: pytest.fail("weights were loaded"))
    argv = ["--llada_ckpt", str(BUNDLE), "--data", problems("math500"), "--output_dir", str(tmp_path / "out")]
    assert "math500 cannot be scored here: `sympy` is required" in refused(capsys, "math500", *argv)


@pytest.mark.parametrize("name", TASKS)
def test_help_names_the_tasks_circuits_and_fields(capsys, name):
    with pytest.raises(SystemExit) as exit_info:
        script(name).main(["--help"])
    assert exit_info.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert TASKS[name].circuits["dream"] in shown
    assert all(f'"{column}"' in shown for column in TASKS[name].columns)
    assert ("--run_generated_code" in shown) == (name == "mbpp")
