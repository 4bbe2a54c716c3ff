"""Problems of our own in GSM8K's schema, and lm-eval's task on them, made once."""

import json
import os
import pathlib

import datasets
import pytest

from codd_jax.evaluation.presets import TASKS
from codd_jax.evaluation.problems import find_problems, load_task
from tests.oracles.word_problems import QUESTIONS


@pytest.fixture(scope="session")
def problems_file(tmp_path_factory) -> pathlib.Path:
    """Seven problems, the last of them asked as the first; `train.jsonl` beside them."""
    folder = tmp_path_factory.mktemp("gsm8k_own")
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in QUESTIONS]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "train.jsonl").write_text("\n".join(lines[:3]) + "\n")
    return folder / "test.jsonl"


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory):
    """Keeps the data sets' cache out of the home folder."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def task(problems_file, data_cache):
    """lm-eval's GSM8K on the seven problems."""
    return load_task(TASKS["gsm8k"], find_problems(TASKS["gsm8k"], problems_file))


@pytest.fixture(scope="session")
def real_gsm8k(data_cache) -> pathlib.Path:
    """The public GSM8K test set (CODD_JAX_GSM8K), or a skip."""
    default = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gsm8k"
    folder = pathlib.Path(os.environ.get("CODD_JAX_GSM8K", default))
    if not (folder / "test.jsonl").is_file():
        pytest.skip(f"GSM8K is not at {folder}; set CODD_JAX_GSM8K to a folder with its test.jsonl")
    return folder
