"""Where a benchmark's problems come from: the stock lm-eval task on the hub's data, or on a local JSONL file."""

import contextlib
import dataclasses
import json
import pathlib
import random
import re
import shutil
import string
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from codd_jax.evaluation.presets import TaskPreset

_TEMPLATES = pathlib.Path(__file__).parent / "tasks"
# lm-eval's own default, so that worked examples are those that its command line would draw.
FEWSHOT_SEED = 1234
# The same for what a task shuffles while it is loaded, as GPQA does with its choices.
_LOADING_SEED = 0


@dataclasses.dataclass(frozen=True)
class LocalProblems:
    """Local JSONL files, checked: `test` holds the problems, `train` the worked examples (None when none are asked)."""

    test: pathlib.Path
    train: pathlib.Path | None
    count: int


def find_problems(preset: TaskPreset, data: str | pathlib.Path, num_shot: int = 0) -> LocalProblems:
    """Checks local problems before anything expensive starts.

    Args:
      preset: the task that they are for.
      data: a JSONL file, or a folder with `test.jsonl`. Worked examples come from `train.jsonl` beside it.
      num_shot: how many worked examples a prompt gets.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a line is not a JSON object with the task's fields (the message has the line's number), or the task
        has no worked examples.
    """
    check_worked_examples(preset, num_shot)
    test = pathlib.Path(data).expanduser()
    if test.is_dir():
        test = test / "test.jsonl"
    if not test.is_file():
        raise FileNotFoundError(
            f"no problems at {test}; give a JSONL file with the fields {_fields(preset)}, one object a "
            "line, or a folder with test.jsonl"
        )
    count = _check_lines(test, preset)
    train = None
    if num_shot > 0 and preset.worked_examples == "train":
        train = test.with_name("train.jsonl")
        if not train.is_file():
            raise FileNotFoundError(
                f"{num_shot} worked examples were asked for, which come from {train}; put the training problems there "
                "or ask for none"
            )
        available = _check_lines(train, preset)
        if available < num_shot:
            raise ValueError(f"{num_shot} worked examples were asked for, {train} holds {available}")
    return LocalProblems(test.resolve(), train.resolve() if train else None, count)


def check_worked_examples(preset: TaskPreset, num_shot: int) -> None:
    """Raises a ValueError for worked examples of a task that has none."""
    if num_shot and preset.worked_examples is None:
        raise ValueError(f"--num_shot {num_shot}: {preset.name} is asked without worked examples, as in the paper")


def _check_lines(path: pathlib.Path, preset: TaskPreset) -> int:
    """Counts the problems of a file; a faulty line is a ValueError that names it."""
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"{path}, line {number}: not JSON ({error}); one JSON object a line is wanted"
                ) from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: a JSON object is wanted, this is {type(record).__name__}")
            missing = [column for column in preset.columns if not isinstance(record.get(column), str)]
            if missing:
                raise ValueError(
                    f"{path}, line {number}: no text under {' and '.join(map(repr, missing))}; "
                    f"{preset.name} needs {' and '.join(map(repr, preset.columns))}"
                )
            if complaint := _complaint(preset, record):
                raise ValueError(f"{path}, line {number}: {complaint}")
            count += 1
    if not count:
        raise ValueError(f"{path} holds no problems; one JSON object a line is wanted")
    return count


def _fields(preset: TaskPreset) -> str:
    """The fields of a local file of problems, listed."""
    return " and ".join((*preset.columns, *preset.list_columns))


def _complaint(preset: TaskPreset, record: Mapping[str, Any]) -> str | None:
    """What a task needs of a problem beside its text fields, and this one lacks."""
    if preset.name == "math500" and not re.search(r"\\boxed\s*\{", record["solution"]):
        return "the solution has no \\boxed{…}, where math500 reads the reference answer"
    for column in preset.list_columns:
        texts = record.get(column)
        if not isinstance(texts, list) or len(texts) < 3 or not all(isinstance(text, str) for text in texts):
            return (
                f"{column!r} is not a list of at least three texts; {preset.name} shows three assertions and runs them"
            )
    return None


def load_task(preset: TaskPreset, problems: LocalProblems | None = None, num_shot: int = 0) -> Any:
    """lm-eval's task object, its scoring untouched.

    Args:
      preset: the task.
      problems: local files; None takes the stock task's data from the hub.
      num_shot: worked examples in each prompt.

    Returns:
      An `lm_eval.api.task.Task`.

    Raises:
      ConnectionError: the hub, or the data set on it, is out of reach.
      PermissionError: the data set's conditions were not accepted.
      ImportError: packages that the task's scoring needs are missing.
      ValueError: worked examples of a task that has none.
    """
    check_worked_examples(preset, num_shot)
    # lm-eval and datasets take a second to import; nothing but an evaluation needs them.
    import lm_eval
    from lm_eval.tasks import TaskManager

    stock = pathlib.Path(lm_eval.__file__).parent / "tasks" / preset.harness_file
    with tempfile.TemporaryDirectory(prefix="codd_jax_task_") as name, _loading(quiet=problems is not None):
        folder = pathlib.Path(name)
        local = _gather(problems, folder)
        definition = _own_definition(preset, stock, folder) if preset.task_file else stock
        (folder / "task.yaml").write_text(_fill_template(preset, definition, local, num_shot), encoding="utf-8")
        # Without the defaults the index holds this one task and takes milliseconds, not seconds.
        manager = TaskManager(include_path=name, include_defaults=False)
        try:
            loaded = manager.load([preset.harness_task])["tasks"] if hasattr(manager, "load") else None
            task = (loaded or manager.load_task_or_group([preset.harness_task]))[preset.harness_task]
        except (ImportError, AssertionError) as error:  # an assertion is how lm-eval's task checks a version
            raise ImportError(f"{preset.name} cannot be scored here: {error}") from error
        except OSError as error:
            if problems is not None:
                raise
            raise _unreachable(preset, error) from error
        _settle_documents(task)
        task.eval_docs  # noqa: B018 (prepared here, quietly)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return task


def _settle_documents(task: Any) -> None:
    """Has the task prepare its documents once: GPQA draws the order of its choices, anew whenever it is looked at.

    lm-eval leaves it to the cache of datasets on the disk, which files in memory do not have, that the first order
    stays. It is the one that lm-eval's own seed gives.
    """
    prepare = task.config.process_docs
    if prepare is None:
        return
    prepared: dict[int, tuple[Any, Any]] = {}

    def prepare_once(documents: Any) -> Any:
        if id(documents) not in prepared:
            with _drawing():
                # The documents are kept, so that no others take their id.
                prepared[id(documents)] = (documents, prepare(documents))
        return prepared[id(documents)][1]

    task.config.process_docs = prepare_once


def _unreachable(preset: TaskPreset, error: OSError) -> OSError:
    """The error of problems that the hub did not hand out, with the ways to have them."""
    instead = f"a local copy also serves: --data FILE.jsonl with the fields {_fields(preset)}"
    if preset.gated and "gated" in str(error):
        return PermissionError(
            f"the {preset.name} problems are handed out once their conditions are accepted: do so at "
            f"https://huggingface.co/datasets/{preset.hub_dataset}, then log in (`hf auth login`, or HF_TOKEN); "
            f"{instead}"
        )
    return ConnectionError(
        f"the {preset.name} problems could not be fetched from the Hugging Face hub ({preset.hub_dataset}: {error}). "
        f"Without network access {instead}"
    )


def _own_definition(preset: TaskPreset, stock: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Writes our definition of a task, on top of a copy of the stock one without its code, and returns its path.

    The stock definition's functions would be imported with it, and may want the network.
    """
    blocks = re.split(r"(?m)^(?=[^\s#-])", stock.read_text(encoding="utf-8"))
    plain = folder / "stock.inc"
    plain.write_text("".join(block for block in blocks if "!function" not in block), encoding="utf-8")
    template = (_TEMPLATES / preset.task_file).read_text(encoding="utf-8")
    own = folder / "own.inc"
    values = {"stock_task": json.dumps(str(plain)), "name": preset.harness_task}
    own.write_text(string.Template(template).substitute(values), encoding="utf-8")
    return own


def _gather(problems: LocalProblems | None, folder: pathlib.Path) -> dict[str, str]:
    """The problems' files under plain names in `folder`: datasets takes brackets in a path for a pattern."""
    files = {}
    for name in ("test", "train"):
        if path := getattr(problems, name, None):
            files[name] = str(shutil.copyfile(path, folder / f"{name}.jsonl"))
    return files


def _fill_template(preset: TaskPreset, stock: pathlib.Path, files: dict[str, str], num_shot: int) -> str:
    """The text of a task file, on the hub's problems where there are no local `files`; JSON strings are YAML's too."""
    values = {"stock_task": json.dumps(str(stock)), "name": preset.harness_task, "num_shot": num_shot}
    if not files:
        template = "hub.yaml"
    else:
        template = "local_jsonl.yaml"
        values |= {
            "data_files": json.dumps(files),
            "cache": json.dumps(f"{files['test']}.cache"),
            "train_split": "train" if "train" in files else "null",
        }
    return string.Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


@contextlib.contextmanager
def _loading(quiet: bool) -> Iterator[None]:
    """Loads with lm-eval's own seed and without cached orders; `quiet` hides the bars of work on a local file."""
    import datasets
    from datasets.utils import logging as datasets_logging

    hide = quiet and datasets_logging.is_progress_bar_enabled()
    cached = datasets.is_caching_enabled()
    if hide:
        datasets_logging.disable_progress_bar()
    # What an earlier process drew would come back out of the cache.
    datasets.disable_caching()
    try:
        with _drawing():
            yield
    finally:
        if cached:
            datasets.enable_caching()
        if hide:
            datasets_logging.enable_progress_bar()


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Draws as lm-eval does after it has seeded Python's generator; other draws go on as if nothing had been drawn."""
    state = random.getstate()
    random.seed(_LOADING_SEED)
    try:
        yield
    finally:
        random.setstate(state)
