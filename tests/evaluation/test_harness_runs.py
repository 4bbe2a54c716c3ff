"""Whole evaluations with a scripted model: lm-eval's scores, stop strings, and runs that are killed and continued."""

import json
import re
import shutil

import datasets
import pytest

from codd_jax.evaluation import TASKS, Evaluation, evaluate, find_problems, load_task
from codd_jax.evaluation.adapter import HarnessModel, build_requests, score
from codd_jax.evaluation.sampling import DeferredModel
from tests.oracles.scripted_model import ScriptedDecoding, ScriptedModel, byte_tokenizer
from tests.oracles.word_problems import QUESTIONS

GOLD = {question: re.search(r"#### (.*)", answer)[1] for question, answer in QUESTIONS}
# What the same run must repeat to the digit; the rest is time.
TIMES = ("seconds",)


def question_of(prompt: str) -> str:
    """The last question of a rendered prompt."""
    return re.findall(r"Question: (.*?)\nAnswer:", prompt, re.DOTALL)[-1]


def perfect(prompt: str, seed: int) -> str:
    """The gold answer, in GSM8K's form."""
    return f"Let me see.\n#### {GOLD[question_of(prompt)]}"


def setup(**changes) -> Evaluation:
    """An evaluation of the seven problems."""
    return Evaluation(TASKS["gsm8k"], ScriptedDecoding(), **{"batch_size": 2, **changes})


def read_samples(folder) -> list[dict]:
    """Recorded samples by document, without their times."""
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len({(record["doc_id"], record["repeat"]) for record in records}) == len(records)
    kept = [{name: value for name, value in record.items() if name not in TIMES} for record in records]
    return sorted(kept, key=lambda record: record["doc_id"])


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        (perfect, 1.0, 1.0),
        (lambda prompt, seed: "I think it is 123456.", 0.0, 0.0),
        (lambda prompt, seed: "", 0.0, 0.0),
        (lambda prompt, seed: f"so ${GOLD[question_of(prompt)]}.", 0.0, 1.0),
    ],
    ids=["perfect", "wrong", "silent", "unmarked"],
)
def test_scores_are_lm_evals(task, tmp_path, answer, strict, flexible):
    summary = evaluate(ScriptedModel(answer), setup(), task, tmp_path / "run", progress=False)
    assert summary["metrics"]["exact_match,strict-match"]["value"] == strict
    assert summary["accuracy"] == summary["metrics"]["exact_match,flexible-extract"]["value"] == flexible
    assert (summary["correct"], summary["total"]) == (round(7 * flexible), 7)
    low, high = summary["interval_95"]
    assert low <= flexible <= high
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary


def test_summary_says_how_to_repeat_the_run(task, tmp_path):
    summary = evaluate(ScriptedModel(perfect), setup(seed=3), task, tmp_path / "run", progress=False)
    samples = read_samples(tmp_path / "run")
    assert summary["settings"]["decoding"] == {"steps": 4, "gen_length": 16}
    assert summary["settings"]["seed"] == 3
    assert summary["settings"]["until"] == ["Question:", "</s>", "<|im_end|>"]
    assert summary["settings"]["system_prompt"] == "You are a helpful assistant."
    assert summary["settings"]["task_version"] == task.VERSION
    assert {"jax", "lm_eval"} <= summary["environment"]["packages"].keys()
    assert summary["tokens"] == sum(len(sample["tokens"]) for sample in samples)
    assert summary["steps_used"] == sum(sample["steps_used"] for sample in samples)
    assert summary["tokens_per_forward_pass"] == pytest.approx(summary["tokens"] / summary["steps_used"], abs=1e-4)


def test_nothing_after_a_stop_string_or_eos_is_scored(task, tmp_path):
    model = ScriptedModel(
        lambda prompt, seed: (
            f"#### {GOLD[question_of(prompt)]}" + ("\nQuestion: and 99?" if seed == 0 else "</s>#### 99<|im_end|>")
        )
    )
    for seed in (0, 1):
        summary = evaluate(model, setup(seed=seed), task, tmp_path / str(seed), progress=False)
        assert summary["accuracy"] == 1.0
        assert all("99" not in sample["text"] for sample in read_samples(tmp_path / str(seed)))
    assert model.calls[0]["stop_strings"] == ("Question:", "</s>", "<|im_end|>")


def test_repeated_prompts_get_their_own_seed(task, tmp_path):
    model = ScriptedModel(lambda prompt, seed: f"{seed} #### 1")
    evaluate(model, setup(batch_size=3), task, tmp_path / "run", progress=False)
    assert len(model.calls) == 1
    texts = [sample["text"] for sample in read_samples(tmp_path / "run")]
    assert texts[:6] == ["0 #### 1"] * 6
    assert texts[6] != texts[0]


@pytest.mark.parametrize("answers_before_death", [0, 2, 6, 8])
def test_a_killed_run_continues_to_the_same_results(task, tmp_path, answers_before_death):
    def answer(prompt, seed):
        return perfect(prompt, seed) if len(prompt) % 2 else f"{seed}"

    whole = evaluate(ScriptedModel(answer), setup(), task, tmp_path / "whole", progress=False)
    dying = ScriptedModel(answer, dies_after=answers_before_death)
    if answers_before_death < 7:
        with pytest.raises(KeyboardInterrupt):
            evaluate(dying, setup(), task, tmp_path / "killed", progress=False)
    else:
        evaluate(dying, setup(), task, tmp_path / "killed", progress=False)
    file = tmp_path / "killed" / "samples.jsonl"
    if file.exists():
        # The kill may come while a line is being written, and the batch size may change before the next start.
        file.write_bytes(file.read_bytes() + b'{"doc_id": 5, "repeat": 0, "corr')
    second = ScriptedModel(answer)
    continued = evaluate(second, setup(batch_size=3), task, tmp_path / "killed", progress=False)
    assert dying.answered + second.answered == 7
    assert read_samples(tmp_path / "killed") == read_samples(tmp_path / "whole")
    assert 0 < whole["accuracy"] < 1
    for name in ("accuracy", "metrics", "tokens", "steps_used", "settings"):
        assert continued[name] == whole[name]


def test_a_larger_limit_continues_a_smaller_one(task, tmp_path):
    first = evaluate(ScriptedModel(perfect), setup(limit=2), task, tmp_path / "run", progress=False)
    model = ScriptedModel(perfect)
    second = evaluate(model, setup(limit=5), task, tmp_path / "run", progress=False)
    assert (first["total"], second["total"]) == (2, 5)
    assert sum(call["rows"] for call in model.calls) == 3


def test_a_deferred_model_is_loaded_once_its_prompts_are_known_and_only_if_needed(task, tmp_path):
    loads = []
    model = ScriptedModel(perfect)

    def load(lengths):
        loads.append(sorted(lengths))
        return model

    deferred = DeferredModel(model.tokenizer, load)
    for _ in range(2):
        summary = evaluate(deferred, setup(), task, tmp_path / "run", progress=False)
        assert summary["accuracy"] == 1.0
    assert loads == [sorted(length for call in model.calls for length in call["lengths"])]


def test_other_settings_are_refused_by_name(task, tmp_path):
    evaluate(ScriptedModel(perfect), setup(limit=1), task, tmp_path / "run", progress=False)
    model = ScriptedModel(perfect)
    with pytest.raises(ValueError, match="other settings") as refusal:
        evaluate(model, setup(seed=1, sources={"circuit": {"source": "x"}}), task, tmp_path / "run", progress=False)
    assert "seed: 0 → 1" in str(refusal.value)
    assert 'circuit: null → {"source": "x"}' in str(refusal.value)
    assert not model.calls


def test_another_chat_template_is_noticed(task, tmp_path):
    evaluate(ScriptedModel(perfect), setup(limit=1), task, tmp_path / "run", progress=False)
    model = ScriptedModel(perfect)
    model.tokenizer = byte_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="another prompt for document 0"):
        evaluate(model, setup(limit=1), task, tmp_path / "run", progress=False)


def test_worked_examples_come_from_the_training_file(problems_file, data_cache):
    shots = load_task(TASKS["gsm8k"], find_problems(TASKS["gsm8k"], problems_file, 2), 2)
    request = build_requests(shots, byte_tokenizer(), "Be brief.", limit=1)[0]
    assert request.args[0].count("Question:") == 3
    assert request.args[0].startswith("<|system|>Be brief.<|end|><|user|>Question:")
    assert request.args[0].endswith("Answer:<|end|><|assistant|>")


def test_a_path_may_hold_anything(problems_file, data_cache, tmp_path):
    folder = tmp_path / "br[1] {a,b} *? 🐆 'q\" $x"
    shutil.copytree(problems_file.parent, folder)
    own = load_task(TASKS["gsm8k"], find_problems(TASKS["gsm8k"], folder, 1), 1)
    assert len(own.dataset["test"]) == 7 and len(own.dataset["train"]) == 3
    assert own.dataset["test"][0]["question"] == QUESTIONS[0][0]


def test_requests_asked_in_two_calls_are_each_answered_once(task, tmp_path, monkeypatch):
    asked = []

    def ask(model, tasks, **_):
        instances = build_requests(task, byte_tokenizer(), None, limit=2)
        answers = [model.generate_until(instances[:1]), model.generate_until(instances[1:])]
        asked.extend(map(len, answers))
        raise KeyboardInterrupt

    monkeypatch.setattr("lm_eval.evaluator.evaluate", ask)
    with pytest.raises(KeyboardInterrupt):
        evaluate(ScriptedModel(perfect), setup(), task, tmp_path / "run", progress=False)
    assert asked == [1, 1]


def test_the_stock_data_set_is_asked_for_on_the_hub(problems_file, data_cache, monkeypatch):
    asked = []

    def load_dataset(path, name=None, **options):
        asked.append((path, name))
        splits = {split: str(problems_file.with_name(f"{split}.jsonl")) for split in ("train", "test")}
        return datasets.DatasetDict({split: datasets.Dataset.from_json(file) for split, file in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    stock = load_task(TASKS["gsm8k"], num_shot=1)
    assert asked == [("openai/gsm8k", "main")]
    request = build_requests(stock, byte_tokenizer(), None, limit=1)[0]
    assert request.args[0].count("Question:") == 2


def test_an_unreachable_hub_suggests_a_local_file(monkeypatch):
    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConnectionError, match=r"openai/gsm8k: Couldn't reach .* --data FILE\.jsonl"):
        load_task(TASKS["gsm8k"])


def test_the_last_message_can_be_continued():
    adapter = HarnessModel(byte_tokenizer())
    history = [{"role": "user", "content": "Write it."}, {"role": "assistant", "content": "```python"}]
    assert adapter.apply_chat_template(history, add_generation_prompt=False).endswith("<|assistant|>```python")
    assert adapter.apply_chat_template(history[:1]).endswith("Write it.<|end|><|assistant|>")


def test_ranking_tasks_are_refused():
    adapter = HarnessModel(byte_tokenizer())
    for method in (adapter.loglikelihood, adapter.loglikelihood_rolling):
        with pytest.raises(NotImplementedError, match="generative task"):
            method([])


def test_a_missing_chat_template_is_named(task):
    with pytest.raises(ValueError, match="no chat template"):
        build_requests(task, byte_tokenizer(None), None, limit=1)


def test_twenty_real_problems_by_hand(real_gsm8k, tmp_path):
    """lm-eval's score of an answer equals a comparison of numbers that shares no code with it."""
    real = load_task(TASKS["gsm8k"], find_problems(TASKS["gsm8k"], real_gsm8k))
    lines = (real_gsm8k / "test.jsonl").read_text().splitlines()[:20]
    gold = {record["question"]: record["answer"].split("####")[1].strip() for record in map(json.loads, lines)}

    def answer(prompt, seed):
        # Every third answer is off by one, every fifth carries a dollar sign and a full stop.
        number = int(gold[question_of(prompt)].replace(",", ""))
        place = list(gold).index(question_of(prompt))
        number += place % 3 == 0
        return f"First 2 and 3, then ${number:,}." if place % 5 == 0 else f"That gives {number}\n#### {number}"

    summary = evaluate(ScriptedModel(answer), setup(limit=20, batch_size=8), real, tmp_path / "run", progress=False)
    by_hand = [place % 3 != 0 for place in range(20)]
    assert [sample["correct"] for sample in read_samples(tmp_path / "run")] == by_hand
    assert summary["accuracy"] == sum(by_hand) / 20
    instance = build_requests(real, byte_tokenizer(), None, limit=1)[0]
    assert score(real, instance, "it is 18")["exact_match,flexible-extract"] == 1.0
