"""The viewer's script: the demo, a finished run's sample decoded again to the same tokens, and what is refused."""

import json
import shutil

import datasets
import pytest

from codd_jax.evaluation import benchmark
from codd_jax.evaluation.viewer import answer_ids, read_replay
from codd_jax.tokenizer import load_tokenizer
from experiments import gsm8k, view
from experiments.demo_task.decode import BUNDLE
from tests.oracles.browser import browser
from tests.oracles.word_problems import QUESTIONS


def refused(capsys, *argv: str) -> str:
    """Runs the script, expects exit code 2 and one message, and returns it."""
    with pytest.raises(SystemExit) as exit_info:
        view.main(list(argv))
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--prompt a --replay b", "--prompt and --replay are two things to watch"),
        ("--prompt a --results b", "--prompt and --results are two things to watch"),
        ("--doc 3", "--doc counts the problems of a run"),
        ("--results here", "--results needs the run's model"),
        ("--results here --llada_ckpt A/b --num_steps 3", "--num_steps with --results"),
        ("--num_steps 3", "--num_steps without a model"),
        ("--replay nowhere.json", "nowhere.json does not exist"),
        ("--replay a --seed 3", "--seed with --replay"),
        ("--llada_ckpt A/b", "there is nothing to decode; give --prompt"),
        ("--results nowhere --llada_ckpt A/b", "nowhere does not exist"),
    ],
)
def test_bad_command_lines(capsys, monkeypatch, argv, message):
    monkeypatch.setattr(benchmark, "load_model", lambda *_: pytest.fail("weights were loaded"))
    assert message in refused(capsys, *argv.split())


def test_a_finished_run_is_watched_again(capsys, tmp_path, monkeypatch):
    """A benchmark's answers, recorded step by step, are the tokens of its results file, equal prompts included."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    # The first problem twice, told apart by nothing but their order.
    asked = [QUESTIONS[0], QUESTIONS[0]]
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in asked]
    (tmp_path / "test.jsonl").write_text("\n".join(lines) + "\n")
    argv = ["--llada_ckpt", str(BUNDLE), "--data", str(tmp_path), "--gen_length", "16", "--num_steps", "4"]
    argv += ["--temperature", "0.8", "--pc_frac", "always", "--batch_size", "2", "--output_dir", str(tmp_path / "out")]
    gsm8k.main(argv)
    folder = next((tmp_path / "out").iterdir())
    lines = (folder / "samples.jsonl").read_text().splitlines()
    recorded = {record["doc_id"]: record["tokens"] for record in map(json.loads, lines)}
    capsys.readouterr()
    common = ["--llada_ckpt", str(BUNDLE), "--results", str(folder), "--output_dir", str(tmp_path / "view")]
    view.main([*common, "--doc", "1", "--terminal", "--delay", "0"])
    shown = capsys.readouterr().out
    assert "CoDD, latent coupling" in shown and shown.splitlines()[-1] == str(tmp_path / "view" / "replay.html")
    replay = read_replay(tmp_path / "view" / "replay.json")
    alone, coupled = replay.trajectories
    assert (alone["title"], coupled["title"]) == ("Backbone alone", "CoDD, latent coupling")
    assert answer_ids(coupled) == coupled["answer"] == recorded[1]
    assert coupled["note"] == "the same tokens as in the results file"
    assert recorded[0] != recorded[1]
    assert QUESTIONS[0][0] in replay.prompt and "problem 1" in replay.about

    view.main(["--replay", str(tmp_path / "view" / "replay.json"), "--output_dir", str(tmp_path / "again")])
    assert (tmp_path / "again" / "replay.html").read_text() == (tmp_path / "view" / "replay.html").read_text()
    assert "it has 0, 1" in refused(capsys, *common, "--doc", "7")
    other = shutil.copytree(BUNDLE, tmp_path / "other")
    (other / "training.json").write_text("{}")
    common[1] = str(other)
    assert "was made with another backbone" in refused(capsys, *common)

    # Last, since it may be skipped: the page shows the results file's tokens at its end.
    page = browser(tmp_path / "profile")(tmp_path / "view" / "replay.html", "step=end")
    tokenizer = load_tokenizer(BUNDLE)
    assert recorded[1] and page.panels[1][: len(recorded[1])] == [tokenizer.decode([token]) for token in recorded[1]]
