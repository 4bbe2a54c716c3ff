"""Results folders as benchmarks leave them behind, with scores that the caller chooses."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from codd_jax.evaluation.presets import TASKS

DECODING = {
    "steps": 64,
    "gen_length": 512,
    "block_length": 32,
    "remasking": "low_confidence",
    "temperature": 0.0,
    "coupling": "none",
    "pc_temperature": 0.7,
    "pc_frac": 0.3,
    "reverse_frac": False,
    "windows": None,
    "cache": "none",
    "threshold": None,
}
ENVIRONMENT = {"codd_jax": "0.1", "backend": "cpu", "devices": ["cpu", "cpu"], "packages": {"jax": "0.10.2"}}


def record_run(
    folder: pathlib.Path,
    correct: Sequence[bool],
    *,
    task: str = "gsm8k",
    family: str = "llada",
    steps_used: int = 64,
    summary: bool = True,
    limit: int | None = None,
    seed: int = 0,
    adapter: str | None = None,
    num_shot: int = 0,
    circuit: str = "il18",
    **decoding: Any,
) -> pathlib.Path:
    """Writes a run's three files: a sample a problem, each of 100 tokens in 2 s."""
    folder.mkdir(parents=True)
    settings = {
        "task": task,
        "family": family,
        "task_version": 3.0,
        "lm_eval": "0.4.13",
        "seed": seed,
        "num_shot": num_shot,
        "system_prompt": TASKS[task].system_prompt if task in TASKS else "",
        "circuit": {"source": circuit, "digest": "22"},
        "adapter": adapter and {"source": adapter, "digest": "11"},
        "backbone": {"source": "<b>tiny</b>", "digest": "00"},
        "decoding": {**DECODING, **decoding},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    samples = [
        {"doc_id": number, "repeat": 0, "correct": bool(right), "scores": {}, "num_tokens": 100, "prompt_digest": "d"}
        | {"steps_used": steps_used, "seconds": 2.0, "pc_failures": 0, "text": "answer", "tokens": []}
        for number, right in enumerate(correct)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    if summary:
        content = {"total": len(samples), "limit": limit, "metric": "exact_match,x", "environment": ENVIRONMENT}
        (folder / "summary.json").write_text(json.dumps(content))
    return folder
