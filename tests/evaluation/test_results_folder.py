"""The results folder, batches and intervals, without lm-eval."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from codd_jax.evaluation.batching import group_by, occurrences
from codd_jax.evaluation.presets import DECODING, FAMILIES, TASKS, decoding_preset
from codd_jax.evaluation.problems import find_problems
from codd_jax.evaluation.provenance import identify
from codd_jax.evaluation.results import ResultsFolder, differences, wilson_interval
from codd_jax.evaluation.sampling import answer_seed, clip


@pytest.mark.parametrize(
    # Newcombe (1998), table I, method 3: Wilson's score interval without continuity correction.
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_against_published_values(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_holds_the_share_and_refuses_nonsense():
    assert wilson_interval(7, 7)[1] == 1.0
    for correct, total in ((0, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="no proportion"):
            wilson_interval(correct, total)


def test_requests_are_grouped_by_kind_in_their_order():
    assert group_by(["a", "b", "a", "c", "b"]) == [[0, 2], [1, 4], [3]]
    assert group_by([]) == []


def test_occurrences_and_their_seeds():
    assert occurrences(["a", "b", "a", "a"]) == [0, 0, 1, 2]
    seeds = [answer_seed(seed, occurrence) for seed in (0, 1, 2) for occurrence in (0, 1, 2)]
    assert seeds[::3] == [0, 1, 2]
    assert len(set(seeds)) == 9


def test_clip_cuts_at_the_first_stop():
    assert clip("one two three", ["three", "two", ""]) == "one "
    assert clip("one", ["two"]) == "one"


def test_differences_are_named_by_path():
    before, now = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "e": 5}}
    assert differences(before, now) == ["b.c: 2 → 4", "b.d: 3 → null", "b.e: null → 5"]


def record(doc_id: int, **more) -> dict:
    return {"doc_id": doc_id, "repeat": 0, **more}


def test_folder_keeps_samples_and_drops_a_torn_line(tmp_path):
    ResultsFolder(tmp_path / "run", {"seed": 0}).append([record(0, text="ä\u2028"), record(1)])
    file = tmp_path / "run" / "samples.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"doc_id": 2, "rep')
    again = ResultsFolder(tmp_path / "run", {"seed": 0})
    assert again.samples == {(0, 0): record(0, text="ä\u2028"), (1, 0): record(1)}
    assert file.read_bytes() == whole


def test_two_processes_cannot_write_one_folder(tmp_path):
    folder = ResultsFolder(tmp_path / "run", {})
    script = "import sys; from codd_jax.evaluation.results import ResultsFolder; ResultsFolder(sys.argv[1], {})"
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    options = {"capture_output": True, "text": True, "cwd": pathlib.Path(__file__).resolve().parents[2]}
    refused = subprocess.run(command, **options)
    assert f"is being written by process {os.getpid()} on" in refused.stderr
    folder.close()
    assert subprocess.run(command, **options).returncode == 0


def test_a_folder_without_samples_takes_new_settings(tmp_path):
    ResultsFolder(tmp_path / "run", {"seed": 0})
    ResultsFolder(tmp_path / "run", {"seed": 1}).append([record(0)])
    with pytest.raises(ValueError, match="seed: 1 → 0"):
        ResultsFolder(tmp_path / "run", {"seed": 0})


def test_folder_refuses_damage_and_foreign_files(tmp_path):
    ResultsFolder(tmp_path / "run", {}).append([record(0), record(1)])
    file = tmp_path / "run" / "samples.jsonl"
    file.write_text("nonsense\n" + file.read_text())
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 1 is damaged"):
        ResultsFolder(tmp_path / "run", {})
    (tmp_path / "run" / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"without the settings\.json"):
        ResultsFolder(tmp_path / "run", {})
    (tmp_path / "run" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        ResultsFolder(tmp_path / "run", {})


def test_identity_follows_content_not_place_or_date(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "ckpt").mkdir(parents=True)
        (tmp_path / name / "ckpt" / "weights").write_bytes(bytes(9 << 20))
    first = identify(tmp_path / "one" / "ckpt")
    assert first == identify(tmp_path / "two" / "ckpt")
    with (tmp_path / "two" / "ckpt" / "weights").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"x")
    assert first != identify(tmp_path / "two" / "ckpt")
    assert identify("GSAI-ML/LLaDA-8B-Instruct") == {"source": "GSAI-ML/LLaDA-8B-Instruct"}
    assert identify(None) is None


def test_presets_are_complete_and_registered():
    assert set(DECODING) == set(FAMILIES)
    assert decoding_preset("llada", steps=7) == {**DECODING["llada"], "steps": 7}
    assert (DECODING["dream"]["top_k"], DECODING["dream"]["block_length"]) == (50, None)
    with pytest.raises(ValueError, match="'mamba'"):
        decoding_preset("mamba")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no problems"),
        ('{"question": "a", "answer": "b"}\n{"question": ', "line 2: not JSON"),
        ('{"question": "a", "answer": "b"}\n\n[1]\n', "line 3: a JSON object is wanted, this is list"),
        ('{"question": "a"}\n', "line 1: no text under 'answer'"),
        ('{"question": "a", "answer": 3}\n', "line 1: no text under 'answer'"),
    ],
)
def test_faulty_problem_files_name_the_line(tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        find_problems(TASKS["gsm8k"], tmp_path / "bad.jsonl")


def test_missing_files_and_too_few_worked_examples(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no problems at .*test\.jsonl"):
        find_problems(TASKS["gsm8k"], tmp_path)
    line = json.dumps({"question": "a", "answer": "b"}) + "\n"
    (tmp_path / "test.jsonl").write_text(line)
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl"):
        find_problems(TASKS["gsm8k"], tmp_path, num_shot=1)
    (tmp_path / "train.jsonl").write_text(line)
    with pytest.raises(ValueError, match="2 worked examples were asked for"):
        find_problems(TASKS["gsm8k"], tmp_path, num_shot=2)
    assert find_problems(TASKS["gsm8k"], tmp_path, num_shot=1).count == 1
