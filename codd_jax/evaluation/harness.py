"""An evaluation from task to summary: lm-eval asks and scores, the sampler answers, the results folder remembers."""

import dataclasses
import datetime
import json
import pathlib
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from codd_jax.distributed import from_first, is_first
from codd_jax.evaluation.options import check_permission
from codd_jax.evaluation.presets import TaskPreset
from codd_jax.evaluation.problems import FEWSHOT_SEED
from codd_jax.evaluation.provenance import environment
from codd_jax.evaluation.results import Mirror, ResultsFolder, open_results, wilson_interval
from codd_jax.evaluation.sampling import DeferredModel, Request, Sampler, TextModel


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is asked, of whom the answers are expected, and how they are drawn.

    Attributes:
      preset: the benchmark.
      decode: the decoding configuration, a dataclass.
      num_shot: worked examples in each prompt.
      limit: the first so many problems; None for all.
      seed: of every draw.
      batch_size: rows that go through the model together; mesh: devices they are spread over. No answer depends on
        them.
      run_generated_code: permission to score a task by running the programs in its answers.
      replicated: parts of the backbone that the mesh does not divide, for the record.
      sources: names of checkpoints and data, recorded and compared when a run continues.
    """

    preset: TaskPreset
    decode: Any
    num_shot: int = 0
    limit: int | None = None
    seed: int = 0
    batch_size: int = 8
    mesh: str | None = None
    run_generated_code: bool = False
    replicated: Sequence[str] = ()
    sources: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def settings(self, task: Any) -> dict[str, Any]:
        """Everything that decides an answer or its score. `limit`, `batch_size` and `mesh` do not: a run may continue
        with other ones."""
        import lm_eval

        return {
            "task": self.preset.name,
            "harness_task": self.preset.harness_task,
            "task_version": task.VERSION,
            "lm_eval": lm_eval.__version__,
            "num_shot": self.num_shot,
            "system_prompt": self.preset.system_prompt,
            "until": list((task.config.generation_kwargs or {}).get("until", ())),
            "decoding": _plain(dataclasses.asdict(self.decode)),
            "seed": self.seed,
            **_plain(self.sources),
        }


def evaluate(
    model: TextModel | DeferredModel,
    evaluation: Evaluation,
    task: Any,
    output_dir: str | pathlib.Path,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs a benchmark, or what is left of it, and writes its results.

    Args:
      model: generates text; its tokenizer has a chat template. A `DeferredModel` is loaded when it is needed.
      evaluation: what to run.
      task: from `problems.load_task`.
      output_dir: a folder for `settings.json`, `samples.jsonl` (a line a sample, appended as each finishes) and
        `summary.json`. If it holds a run with the same settings, that run is continued.
      progress: show a bar with running accuracy and tokens/s.

    Returns:
      The summary, as written.

    Raises:
      ValueError: `output_dir` was made with other settings, a prompt does not fit the model, or a task would run
        programs without permission.
    """
    check_permission(evaluation.preset, evaluation.run_generated_code)
    started = datetime.datetime.now(datetime.UTC)
    clock = time.perf_counter()
    settings = evaluation.settings(task)
    with open_results(output_dir, settings) as folder:
        requests, results = _ask(model, evaluation, task, folder, progress and is_first())
        # Only the first process has scores; it knows the summary.
        summary = from_first(
            lambda: {
                **summarise(
                    [folder.samples[request.doc_id, request.repeat] for request in requests],
                    results["results"][evaluation.preset.harness_task],
                    evaluation.preset,
                ),
                "settings": settings,
                "limit": evaluation.limit,
                "batch_size": evaluation.batch_size,
                "mesh": evaluation.mesh,
                "replicated": list(evaluation.replicated),
                "started": started.isoformat(timespec="seconds"),
                "seconds_this_run": round(time.perf_counter() - clock, 3),
                "environment": environment(),
            }
        )
        # A run that is asked for fewer problems than it has answered keeps the summary of them all.
        if len(folder.samples) <= summary["total"]:
            folder.write_summary(summary)
    return summary


def _ask(
    model: TextModel | DeferredModel, evaluation: Evaluation, task: Any, folder: ResultsFolder | Mirror, progress: bool
) -> tuple[list[Request], Mapping[str, Any]]:
    """The requests, all of them answered in the folder, and what lm-eval makes of the answers.

    Where a run is spread over several processes, all decode the same requests together, and the first one scores them.
    """
    from lm_eval.evaluator import evaluate as harness_evaluate

    from codd_jax.evaluation.adapter import HarnessModel, build_requests, score

    task.set_fewshot_seed(seed=FEWSHOT_SEED)  # drawing worked examples moves it on, and runs share a task
    requests: list[Request] = []

    def answer(instances: Sequence[Any]) -> list[str]:
        asked = as_requests(task, instances)
        requests.extend(asked)
        by_document = {instance.doc_id: instance for instance in instances}

        def score_first(request: Request, text: str) -> Mapping[str, float]:
            if not is_first():
                return {evaluation.preset.headline: 0.0}
            return score(task, by_document[request.doc_id], text)

        sampler = Sampler(
            model=model,
            decode=evaluation.decode,
            folder=folder,
            score=score_first,
            headline=evaluation.preset.headline,
            seed=evaluation.seed,
            batch_size=evaluation.batch_size,
            progress=progress,
        )
        return sampler.answer(asked)

    if not is_first():
        answer(build_requests(task, model.tokenizer, evaluation.preset.system_prompt, evaluation.limit))
        return requests, {}
    results = harness_evaluate(
        HarnessModel(model.tokenizer, answer),
        {evaluation.preset.harness_task: task},
        limit=evaluation.limit,
        bootstrap_iters=0,
        confirm_run_unsafe_code=evaluation.run_generated_code,
        system_instruction=evaluation.preset.system_prompt,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    return requests, results


def as_requests(task: Any, instances: Sequence[Any]) -> list[Request]:
    """lm-eval's instances as requests; an instance that is asked several times counts its repeats."""
    asked: dict[int, int] = {}
    requests = []
    for instance in instances:
        prompt, options = instance.args
        until = options.get("until") or ()
        repeat = asked.get(instance.doc_id, 0)
        asked[instance.doc_id] = repeat + 1
        requests.append(
            Request(
                doc_id=instance.doc_id,
                repeat=repeat,
                prompt=prompt,
                until=(until,) if isinstance(until, str) else tuple(until),
                doc=instance.doc,
                target=task.doc_to_target(instance.doc),
            )
        )
    return requests


def summarise(
    samples: Sequence[Mapping[str, Any]], harness_results: Mapping[str, Any], preset: TaskPreset
) -> dict[str, Any]:
    """Accuracy with its 95 % Wilson interval, every metric of lm-eval, and what the answers cost.

    Args:
      samples: records as in `samples.jsonl`.
      harness_results: lm-eval's aggregated results of the task.
      preset: of the task.

    Raises:
      RuntimeError: lm-eval's figure is not the mean of the samples' scores. Where scoring has time limits, it may
        differ when it is repeated: the samples' scores then stand, with a warning.
    """
    headline = preset.headline
    total = len(samples)
    metrics = {}
    for name in samples[0]["scores"]:
        summed = sum(sample["scores"][name] for sample in samples)
        reported = float(harness_results[name])
        if abs(reported - summed / total) > 1e-6:
            complaint = f"lm-eval reports {name} = {reported}, the samples' mean is {summed / total}"
            if not preset.timed_scoring:
                raise RuntimeError(complaint)
            warnings.warn(f"{complaint}, which is what counts: scored again, an answer ran out of time", stacklevel=2)
            reported = summed / total
        metrics[name] = {"value": reported, "interval_95": [round(end, 6) for end in wilson_interval(summed, total)]}
    tokens = sum(sample["num_tokens"] for sample in samples)
    steps = sum(sample["steps_used"] for sample in samples)
    seconds = sum(sample["seconds"] for sample in samples)
    return {
        "metric": headline,
        "accuracy": metrics[headline]["value"],
        "interval_95": metrics[headline]["interval_95"],
        "correct": sum(sample["correct"] for sample in samples),
        "total": total,
        "metrics": metrics,
        "tokens": tokens,
        "steps_used": steps,
        "tokens_per_forward_pass": round(tokens / steps, 4) if steps else None,
        "generation_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 3) if seconds else None,
        "pc_failures": sum(sample["pc_failures"] for sample in samples),
    }


def _plain(value: Any) -> Any:
    """JSON's view of a nested value."""
    return json.loads(json.dumps(value, default=str))
