"""How many steps devices spend on rows that have nothing left to fill, with refilled rows and without."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from codd_jax.decoding.canvas import row_keys
from codd_jax.decoding.config import DecodeConfig
from codd_jax.generation import Job
from codd_jax.model import CoDD


@dataclasses.dataclass(frozen=True)
class Mix:
    """Requests whose answers end after few blocks or many, on random weights.

    Random weights draw tokens nearly uniformly at temperature 1, so that a share of the vocabulary as stop ids ends
    answers after geometrically distributed lengths.

    Attributes:
      requests, batch_size: how many there are, and rows of the canvas.
      prompt_length, gen_length, block_length: in tokens.
      mean_length: of the answers, were there no end to the generation.
      steps: of an even schedule; None: one for each token. threshold: in place of the schedule.
    """

    requests: int
    batch_size: int
    prompt_length: int = 24
    gen_length: int = 128
    block_length: int = 16
    mean_length: int = 32
    steps: int | None = None
    threshold: float | None = None

    def config(self, model: CoDD) -> DecodeConfig:
        """How the requests are decoded."""
        count = min(max(round(model.config.vocab_size / self.mean_length), 1), model.config.mask_id)
        return DecodeConfig(
            gen_length=self.gen_length,
            block_length=self.block_length,
            steps=self.steps or self.gen_length,
            threshold=self.threshold,
            temperature=1.0,
            coupling="none",
            stop_ids=tuple(range(count)),
        )

    def prompts(self, model: CoDD) -> list[list[int]]:
        """Random ids, the same for everyone."""
        low = model.config.vocab_size // 2
        return (
            np.random.default_rng(0).integers(low, model.config.mask_id, (self.requests, self.prompt_length)).tolist()
        )


def measure_refilling(model: CoDD, mix: Mix, caches: Sequence[str] = ("none",)) -> dict[str, Any]:
    """Steps and seconds of the mix, with refilled rows and without, and whether the tokens are equal.

    Returns:
      `runs`: for each cache, refilled or not: `device_steps` and `used_steps` while requests were waiting (the last
      batch, which nobody waits behind, left out), `overhead` of the first over the second, the same of the whole run
      as `overhead_with_last_batch`, and `seconds`. `tokens_equal`: between the runs of each cache.
    """
    rows, config = mix.prompts(model), mix.config(model)
    runs, equal = [], []
    for cache in caches:
        answers = []
        for refill in (True, False):
            job = Job(model, dataclasses.replace(config, cache=cache), rows, row_keys(rows, 0), mix.gen_length)
            next(job.boundaries(mix.batch_size, refill))  # compiles
            started = time.perf_counter()
            boundaries = list(job.boundaries(mix.batch_size, refill))
            seconds = time.perf_counter() - started
            busy = [boundary for boundary in boundaries if boundary.waiting]
            device, used = (sum(getattr(b, name) for b in busy) for name in ("device_steps", "used_steps"))
            whole = sum(b.device_steps for b in boundaries) / sum(b.used_steps for b in boundaries) - 1
            done = {row.index: row for boundary in boundaries for row in boundary.finished}
            answers.append([done[n].tokens.tolist() for n in range(len(rows))])
            runs.append(
                {
                    "cache": cache,
                    "refill": refill,
                    "device_steps": device,
                    "used_steps": used,
                    "overhead": device / used - 1,
                    "overhead_with_last_batch": whole,
                    "seconds": seconds,
                }
            )
        equal.append(answers[0] == answers[1])
    steps = sorted(row.steps_used for row in done.values())
    spread = {
        name: steps[int(share * (len(steps) - 1))] for name, share in (("least", 0), ("median", 0.5), ("most", 1))
    }
    return {"runs": runs, "tokens_equal": equal, "steps_of_an_answer": spread, "mix": dataclasses.asdict(mix)}
