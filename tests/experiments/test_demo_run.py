"""The shipped bundle and the demo's run on it, end to end with a handful of problems."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax import CoDD
from experiments import demo
from experiments.demo_task import decode
from experiments.demo_task.data import WINDOW
from experiments.demo_task.problems import grade, sample_problems
from experiments.demo_task.report import markdown_table


def test_the_bundle_is_complete_and_small():
    files = {path.name: path.stat().st_size for path in decode.BUNDLE.iterdir()}
    assert sum(files.values()) <= 8_000_000
    assert set(files) == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "circuit.safetensors", "circuit.json", "training.json",
    }  # fmt: skip


def test_the_bundle_loads_as_any_checkpoint():
    model = CoDD.from_pretrained(decode.BUNDLE, circuit=decode.BUNDLE, dtype="float32")
    assert model.config.family == "llada" and model.config.num_heads == 8
    assert model.hmm.num_states == 64 and model.hmm.length == WINDOW and model.hmm.homogeneous
    assert model.hmm.vocab_size == model.config.vocab_size
    assert model.tokenizer.mask_token_id == model.config.mask_id
    # A real task's prompt runs through it, whatever it says.
    system = "You are a helpful assistant."
    prompt = "Janet’s ducks lay 16 eggs per day. She sells £5.25 worth of them. How much does she make?"
    out = model.generate([prompt], decode.decode_config("codd", 2), system=system)
    assert isinstance(out.text[0], str)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A run over four problems at two numbers of steps, with its folder."""
    folder = tmp_path_factory.mktemp("demo")
    return demo.run_demo(folder, problems=4, steps=(2, 32), progress=False), folder


def test_run_writes_table_and_plot(result):
    table, folder = result
    assert json.loads((folder / "table.json").read_text()) == table
    assert len(table["rows"]) == 6
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert markdown_table(table) in (folder / "table.md").read_text()


def test_rows_add_up(result):
    table, _ = result
    for row in table["rows"]:
        assert 0 <= row["solved_low"] <= row["solved"] <= row["solved_high"] <= 1
        assert row["solved"] <= min(row["answer_right"], row["coherent"])
        assert row["tokens_per_forward"] * row["steps"] <= WINDOW


def test_sequential_decoding_solves(result):
    table, _ = result
    last = {row["method"]: row["solved"] for row in table["rows"] if row["steps"] == 32}
    assert min(last.values()) >= 0.75, "four problems of which 98 % are solved"


def test_example_is_the_first_incoherent_one(result):
    table, _ = result
    example = table["example"]
    if example is None:
        assert all(row["coherent"] == 1 for row in table["rows"] if (row["method"], row["steps"]) == ("backbone", 2))
        return
    stream = sample_problems(0, True)
    problems = [next(stream) for _ in range(4)]
    problem = next(p for p in problems if p.question == example["question"])
    assert not grade(problem, example["answers"]["backbone"]["text"]).coherent


def test_answers_do_not_depend_on_the_batch():
    model = CoDD.from_pretrained(decode.BUNDLE, circuit=decode.BUNDLE, dtype="float32")
    stream = sample_problems(0, True)
    questions = [next(stream).question for _ in range(3)]
    config = decode.decode_config("codd", 4)
    together = model.generate(questions, config, batch_size=3)
    alone = [model.generate([question], config, batch_size=3).text[0] for question in questions[::-1]]
    assert together.text == alone[::-1]


def test_command_line(tmp_path, capsys):
    demo.main(["--problems", "2", "--steps", "8", "--output_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "Built-in demo" in printed and str(tmp_path) in printed
    assert re.search(r"\| 8 \|", printed)


def test_no_problems_are_refused():
    with pytest.raises(ValueError, match="0 problems"):
        demo.run_demo(problems=0)
    with pytest.raises(ValueError, match="method"):
        decode.decode_config("magic", 2)


def test_weights_survive_storage():
    model = CoDD.from_pretrained(decode.BUNDLE, circuit=decode.BUNDLE, dtype="float32")
    for row in (model.hmm.initial[None], model.hmm.transition, model.hmm.emission):
        np.testing.assert_allclose(np.asarray(row, np.float64).sum(-1), 1.0, atol=1e-5)
    assert model.backbone.embed.weight[...].dtype == jnp.float32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--steps 0", "'0' is not a whole number of at least 1"),
        ("--problems 0", "'0' is not a whole number of at least 1"),
        ("--seed 9223372036854775808", "is above 9223372036854775807"),
        ("--bundle /nonexistent", "/nonexistent is neither an existing path nor a hub id"),
    ],
)
def test_what_cannot_be_run_is_one_message(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        demo.main([*flags.split(), "--output_dir", str(tmp_path)])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
