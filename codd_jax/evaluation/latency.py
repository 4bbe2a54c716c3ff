"""What `experiments.latency` measures: whole answers, a step's parts, and both against what the machine can do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from codd_jax.decoding import begin_block, denoise_step, make_canvas
from codd_jax.decoding.blocks import block_window_start
from codd_jax.decoding.config import DecodeConfig
from codd_jax.decoding.coupling import latent_logits, open_window
from codd_jax.evaluation.provenance import environment
from codd_jax.fitting.costs import CircuitShape, StepShape, step_costs
from codd_jax.generation import LENGTH_BUCKET
from codd_jax.model import CoDD
from codd_jax.timing import interleaved, machine_rates

METHODS = {"backbone": "none", "codd": "latent", "ao": "any_order"}


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is decoded.

    Attributes:
      prompt_length, gen_length, block_length: tokens. batches: rows decoded together. steps: per answer.
      methods: keys of `METHODS`. caches: of `DecodeConfig.cache`. thresholds: each measured beside the schedules.
      repeats: counted rounds.
    """

    prompt_length: int = 256
    gen_length: int = 512
    block_length: int = 32
    batches: Sequence[int] = (1,)
    steps: Sequence[int] = (64, 128, 256)
    methods: Sequence[str] = tuple(METHODS)
    caches: Sequence[str] = ("none",)
    thresholds: Sequence[float] = ()
    repeats: int = 3

    def prompts(self, model: CoDD, batch: int) -> list[list[int]]:
        """Random ids, the same for everyone."""
        rng = np.random.default_rng(0)
        return rng.integers(0, model.config.mask_id, (batch, self.prompt_length)).tolist()

    def cases(self) -> list[dict[str, Any]]:
        """Every combination as the fields of a `DecodeConfig` that differ, with the batch."""
        pace = [{"steps": count} for count in self.steps] + [{"threshold": bound} for bound in self.thresholds]
        combinations = itertools.product(self.batches, pace, self.methods, self.caches)
        return [
            {"batch": batch, **kind, "method": method, "cache": cache} for batch, kind, method, cache in combinations
        ]

    def config(self, case: Mapping[str, Any]) -> DecodeConfig:
        """How a case decodes: greedy, the circuit always on, nothing ends early."""
        return DecodeConfig(
            steps=case.get("steps", self.gen_length),
            threshold=case.get("threshold"),
            gen_length=self.gen_length,
            block_length=self.block_length,
            coupling=METHODS[case["method"]],
            cache=case["cache"],
            pc_frac=None,
            stop_at_eos=False,
        )


def measure(
    model: CoDD, work: Workload, peer: Callable[..., dict[str, Any]] | None = None, progress: bool = True
) -> dict[str, Any]:
    """All figures of a run.

    Args:
      model: with a circuit if a method needs one.
      work: what to decode.
      peer: `PytorchPeer.ask`, timed on the backbone-alone cases of batch 1 without cache or threshold.
      progress: show a bar.

    Returns:
      `rates`, `answers` (a row a case: seconds per sample, tokens/s, steps, overhead over the backbone alone), `parts`
      (a row a batch: seconds of forward, head, circuit, selection, the whole step, and shares of the floor), `peer`.
    """
    flops, bandwidth = machine_rates(model.backbone.dtype)
    cases = work.cases()
    generations: dict[int, Any] = {}
    calls = {}
    for index, case in enumerate(cases):
        calls[f"case {index}"] = _answer(model, work, case, generations, index)
    compared = {}
    if peer is not None:
        compared = _peer_calls(model, work, peer)
    medians = interleaved({**calls, **compared}, work.repeats, progress=progress)
    answers = []
    for index, case in enumerate(cases):
        out = generations[index]
        seconds = medians[f"case {index}"]
        tokens = sum(map(len, out.tokens))
        answers.append(
            {
                **case,
                "seconds_per_sample": seconds / case["batch"],
                "tokens_per_second": tokens / seconds,
                "steps_used": float(out.steps_used.mean()),
                "tokens_per_forward": out.tokens_per_forward,
            }
        )
    for row in answers:
        alone = [r for r in answers if r["method"] == "backbone" and _pace(r) == _pace(row)]
        row["overhead"] = row["seconds_per_sample"] / alone[0]["seconds_per_sample"] - 1 if alone else None
    result = {
        "rates": {"flops_per_second": flops, "bytes_per_second": bandwidth, "dtype": model.backbone.dtype.name},
        "answers": answers,
        "parts": [measure_parts(model, work, batch, flops, bandwidth) for batch in work.batches],
        "workload": dataclasses.asdict(work),
        "environment": environment(),
    }
    if compared:
        result["peer"] = _compare(answers, medians, generations, cases, peer, work, model)
    return result


def _pace(row: Mapping[str, Any]) -> tuple:
    return row["batch"], row.get("steps"), row.get("threshold"), row["cache"]


def _answer(model: CoDD, work: Workload, case: Mapping[str, Any], out: dict, index: int) -> Callable[[], None]:
    prompts, config = work.prompts(model, case["batch"]), work.config(case)

    def call() -> None:
        out[index] = model.generate(prompts, config, batch_size=case["batch"])

    return call


def _peer_calls(model: CoDD, work: Workload, peer: Callable[..., dict[str, Any]]) -> dict[str, Callable[[], Any]]:
    """The public loop on the same prompt, and its full-logits forward pass beside ours."""
    (prompt,) = work.prompts(model, 1)
    shape = {"gen_length": work.gen_length, "block_length": work.block_length}
    canvas = prompt + [model.config.mask_id] * work.gen_length
    tokens, lengths = jnp.asarray([canvas]), jnp.asarray([len(canvas)])
    forward = jax.jit(lambda params: nnx.merge(model.denoiser.graphdef, params)(tokens, lengths))
    calls = {f"peer {steps}": lambda steps=steps: peer(prompt=prompt, steps=steps, **shape) for steps in work.steps}
    return {**calls, "peer forward": lambda: peer(tokens=canvas), "forward": lambda: forward(model.params)}


def _compare(answers, medians, generations, cases, peer, work, model) -> dict[str, Any]:
    """Speed-ups over the public loop, and whether the tokens are equal."""
    (prompt,) = work.prompts(model, 1)
    rows = []
    for index, case in enumerate(cases):
        plain = case["method"] == "backbone" and case["cache"] == "none" and case["batch"] == 1 and "steps" in case
        if plain:
            theirs = peer(
                prompt=prompt, steps=case["steps"], gen_length=work.gen_length, block_length=work.block_length
            )
            seconds = medians[f"peer {case['steps']}"]
            rows.append(
                {
                    "steps": case["steps"],
                    "seconds_per_sample": seconds,
                    "speed_up": seconds / answers[index]["seconds_per_sample"],
                    "tokens_equal": theirs["out"] == generations[index].tokens[0].tolist(),
                }
            )
    return {"answers": rows, "forward_speed_up": medians["peer forward"] / medians["forward"]}


def measure_parts(model: CoDD, work: Workload, batch: int, flops: float, bandwidth: float) -> dict[str, Any]:
    """Seconds of one step's parts on a fresh canvas, and the floor of each by this machine's rates."""
    config = work.config({"steps": work.gen_length, "method": "codd" if model.hmm else "backbone", "cache": "none"})
    strategy, numbers = model.split(config)
    canvas = make_canvas(
        work.prompts(model, batch), work.gen_length, model.config.mask_id, model.config.pad_id, bucket=LENGTH_BUCKET
    )
    canvas, _ = begin_block(canvas, strategy, numbers, np.int32(0))
    window = open_window(
        canvas.tokens, canvas.lengths, block_window_start(canvas, strategy), strategy.window_length, strategy.mask_id
    )
    encode = jax.jit(lambda params: model.denoiser.encode(params, canvas.tokens, canvas.lengths, canvas.call))
    head = jax.jit(lambda params, hidden: model.denoiser.head(params, hidden, window.positions))
    hidden = encode(model.params)
    logits = head(model.params, hidden)
    calls = {"forward": lambda: encode(model.params), "head": lambda: head(model.params, hidden)}
    if model.hmm is not None:
        couple = jax.jit(lambda hmm, logits: latent_logits(hmm, logits, window, canvas.keys, strategy, numbers))
        calls["circuit"] = lambda: couple(model.hmm, logits)
    calls["step"] = lambda: denoise_step(model.denoiser, model.params, canvas, strategy, numbers, model.hmm).tokens
    seconds = interleaved(calls, max(work.repeats, 5))
    seconds["selection"] = seconds["step"] - sum(value for name, value in seconds.items() if name != "step")

    shape = StepShape(batch, canvas.tokens.shape[1], strategy.window_length, value_bytes=model.backbone.dtype.itemsize)
    circuit = None
    if model.hmm is not None:
        hmm = model.hmm
        circuit = CircuitShape(hmm.num_states, hmm.vocab_size, hmm.length, hmm.emission.dtype.itemsize, hmm.homogeneous)
    costs = step_costs(model.config, shape, circuit)
    floor = {name: max(cost.flops / flops, cost.bytes / bandwidth) for name, cost in costs.items()}
    grouped = {
        "forward": floor.pop("projections") + floor.pop("attention"),
        "head": floor.pop("head"),
        "circuit": sum(floor.values()),
    }
    return {
        "batch": batch,
        "seconds": seconds,
        "floor": {**grouped, "step": sum(grouped.values())},
        "share_of_floor": {
            name: value / seconds[name]
            for name, value in {**grouped, "step": sum(grouped.values())}.items()
            if name in seconds
        },
    }
