"""MATH500, GPQA and MBPP through lm-eval: twenty answers each scored by hand, prompts, local files and refusals."""

import json
import random
import re

import datasets
import pytest

from codd_jax.evaluation import TASKS, Evaluation, evaluate, find_problems, load_task
from codd_jax.evaluation.adapter import build_requests
from codd_jax.evaluation.harness import summarise
from codd_jax.evaluation.presets import FAMILIES
from codd_jax.evaluation.problems import check_worked_examples
from tests.oracles.scripted_model import ScriptedDecoding, ScriptedModel, byte_tokenizer
from tests.oracles.task_problems import ANSWERS, PROBLEMS, SHOWN

NEW_TASKS = tuple(PROBLEMS)


def write_problems(path, name: str, places) -> list[dict]:
    """A JSONL file of the problems at `places`, their text numbered."""
    records = []
    for number, place in enumerate(places):
        problem = PROBLEMS[name][place]
        records.append({**problem, SHOWN[name]: f"({number}) {problem[SHOWN[name]]}"})
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return records


def numbered(prompt: str) -> int:
    """The number of the problem that a prompt asks."""
    return int(re.findall(r"\((\d+)\) ", prompt)[0])


@pytest.fixture(scope="module")
def twenty(tmp_path_factory, data_cache):
    """Task name → lm-eval's task on the problems of the twenty answers."""
    tasks = {}

    def make(name):
        if name not in tasks:
            file = tmp_path_factory.mktemp(name) / "test.jsonl"
            write_problems(file, name, [place for place, _, _ in ANSWERS[name]])
            tasks[name] = load_task(TASKS[name], find_problems(TASKS[name], file))
        return tasks[name]

    return make


@pytest.mark.parametrize("name", NEW_TASKS)
def test_twenty_answers_by_hand(twenty, tmp_path, name):
    task = twenty(name)
    letters = {
        numbered(doc["Question"]): {"r": doc["answer"][1], "w": "ABCD"["ABCD".index(doc["answer"][1]) - 1]}
        for doc in (task.eval_docs if name == "gpqa" else ())
    }

    def answer(prompt, seed):
        number = numbered(prompt)
        text = ANSWERS[name][number][1]
        return text.format(**letters[number]) if name == "gpqa" else text

    evaluation = Evaluation(TASKS[name], ScriptedDecoding(), batch_size=20, run_generated_code=name == "mbpp")
    summary = evaluate(ScriptedModel(answer), evaluation, task, tmp_path / "run", progress=False)
    samples = map(json.loads, (tmp_path / "run" / "samples.jsonl").read_text().splitlines())
    scored = {sample["doc_id"]: sample["correct"] for sample in samples}
    by_hand = dict(enumerate(right for _, _, right in ANSWERS[name]))
    assert len(by_hand) == 20
    assert {number: scored[number] for number in by_hand} == by_hand
    assert summary["accuracy"] == sum(by_hand.values()) / 20
    assert summary["settings"]["task_version"] == task.VERSION


def test_prompts_are_the_harness_own_with_the_papers_system_prompts(twenty):
    asked = {}
    for name in NEW_TASKS:
        request = build_requests(twenty(name), byte_tokenizer(), TASKS[name].system_prompt, limit=1)[0]
        asked[name] = request.args[0]
    assert asked["math500"].startswith("<|system|>You are a helpful assistant. Justify your final answer by first ")
    assert "in the format: boxed{ANSWER}.<|end|><|user|>Problem:\n(0) A shelf" in asked["math500"]
    assert "in the format: (LETTER)." in asked["gpqa"]
    assert re.search(r"Choices:\n\(A\) \w+\n\(B\) \w+\n\(C\) \w+\n\(D\) \w+\nAnswer:<\|end\|>", asked["gpqa"])
    assert asked["mbpp"].startswith("<|system|>You are a helpful assistant.<|end|><|user|>")
    assert "assert add(0, 0) == 0<|end|><|assistant|>" in asked["mbpp"]
    # The assistant's turn is left open inside a fence.
    assert asked["mbpp"].endswith("```python\n")


def test_choices_stand_in_the_same_order_every_time(tmp_path, data_cache):
    write_problems(tmp_path / "test.jsonl", "gpqa", [0, 1, 2, 3, 0, 1, 2, 3])
    orders, before = [], random.getstate()
    for seed in (1, 2):
        random.seed(seed)
        drawn = random.getstate()
        task = load_task(TASKS["gpqa"], find_problems(TASKS["gpqa"], tmp_path))
        orders.append([doc["choices"] for doc in task.eval_docs])
        assert random.getstate() == drawn
    random.setstate(before)
    assert orders[0] == orders[1]
    assert len({tuple(choices).index(choices[0]) for choices in orders[0]}) and len({str(o) for o in orders[0]}) > 4


def test_worked_examples_by_task(tmp_path, data_cache):
    write_problems(tmp_path / "test.jsonl", "math500", [0, 1])
    shots = load_task(TASKS["math500"], find_problems(TASKS["math500"], tmp_path, 2), 2)
    assert build_requests(shots, byte_tokenizer(), None, limit=1)[0].args[0].count("Problem:") == 3
    with pytest.raises(ValueError, match="--num_shot 1: mbpp is asked without worked examples"):
        check_worked_examples(TASKS["mbpp"], 1)


def test_programs_are_not_run_without_permission(twenty, tmp_path):
    model = ScriptedModel(lambda prompt, seed: "pass")
    with pytest.raises(ValueError, match="Say --run_generated_code"):
        evaluate(model, Evaluation(TASKS["mbpp"], ScriptedDecoding()), twenty("mbpp"), tmp_path / "run", progress=False)
    assert not model.calls and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("math500", {"solution": "It is 12."}, r"line 1: the solution has no \\boxed"),
        ("math500", {"problem": None}, "line 1: no text under 'problem'"),
        ("gpqa", {"Incorrect Answer 2": None}, "line 1: no text under 'Incorrect Answer 2'"),
        ("mbpp", {"test_list": ["assert True"]}, "line 1: 'test_list' is not a list of at least three"),
        ("mbpp", {"test_list": "assert True"}, "line 1: 'test_list' is not a list"),
        ("mbpp", {"text": 3}, "line 1: no text under 'text'"),
    ],
)
def test_faulty_problems_are_named(tmp_path, name, change, message):
    (tmp_path / "test.jsonl").write_text(json.dumps({**PROBLEMS[name][0], **change}) + "\n")
    with pytest.raises(ValueError, match=message):
        find_problems(TASKS[name], tmp_path)


def test_gated_problems_say_how_to_get_them(monkeypatch):
    def gated(*args, **options):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(PermissionError, match=r"huggingface\.co/datasets/Idavidrein/gpqa, then log in .* --data FILE"):
        load_task(TASKS["gpqa"])


def test_the_hubs_data_sets_are_asked_for(tmp_path, data_cache, monkeypatch):
    asked = []

    def load_dataset(path, name=None, **options):
        task = {"HuggingFaceH4/MATH-500": "math500", "Idavidrein/gpqa": "gpqa"}.get(path, "mbpp")
        asked.append((path, name))
        file = tmp_path / f"{task}.jsonl"
        write_problems(file, task, [0, 1])
        split = "train" if task == "gpqa" else "test"
        return datasets.DatasetDict({split: datasets.Dataset.from_json(str(file))})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in NEW_TASKS:
        assert len(list(load_task(TASKS[name]).eval_docs)) == 2
    assert asked == [
        ("HuggingFaceH4/MATH-500", "default"),
        ("Idavidrein/gpqa", "gpqa_main"),
        ("google-research-datasets/mbpp", "full"),
    ]


def test_every_task_names_its_circuits_and_metric():
    assert set(TASKS) == {"gsm8k", *NEW_TASKS}
    for name, preset in TASKS.items():
        assert preset.name == name and set(preset.circuits) == set(FAMILIES)
        assert preset.headline.count(",") == 1


def test_a_score_that_cannot_be_repeated_is_a_warning_where_time_decides():
    sample = {"num_tokens": 1, "steps_used": 1, "seconds": 1.0, "pc_failures": 0, "correct": True}
    for name in ("gsm8k", "mbpp"):
        preset = TASKS[name]
        samples = [{**sample, "scores": {preset.headline: 1.0}}]
        if preset.timed_scoring:
            with pytest.warns(UserWarning, match="which is what counts"):
                assert summarise(samples, {preset.headline: 0.0}, preset)["accuracy"] == 1.0
        else:
            with pytest.raises(RuntimeError, match=r"lm-eval reports .* = 0\.0, the samples' mean is 1\.0"):
                summarise(samples, {preset.headline: 0.0}, preset)
