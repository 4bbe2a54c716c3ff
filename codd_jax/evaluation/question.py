"""What a viewer decodes again: a prompt of the user's, or a sample of a finished run with the tokens it must repeat."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from codd_jax.decoding.config import DecodeConfig
from codd_jax.evaluation.runs import Run, read_run
from codd_jax.evaluation.sampling import answer_seed
from codd_jax.evaluation.trajectory import Recorder, Trajectory
from codd_jax.model import CoDD
from codd_jax.tokenizer import encode_text


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt and how to decode it.

    Attributes:
      prompt: rendered, with chat markers.
      decode: the configuration; without a circuit in it, the backbone alone is all there is.
      seed: of every draw.
      stop_strings: decoding ends with the block in which one appears.
      expected: the ids that a run recorded for it, None for a new prompt.
    """

    prompt: str
    decode: DecodeConfig
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    expected: tuple[int, ...] | None = None

    def recorders(self, model: CoDD) -> list[Recorder]:
        """The backbone alone, and CoDD where the configuration has a circuit.

        Raises:
          ValueError: a circuit that the model lacks.
        """
        ids = encode_text(model.tokenizer, self.prompt)
        variants = [dataclasses.replace(self.decode, coupling="none", windows=None)]
        if self.decode.coupling != "none":
            variants.append(self.decode)
        return [Recorder(model, ids, each, seed=self.seed, stop_strings=self.stop_strings) for each in variants]

    def notes(self, trajectories: Sequence[Trajectory]) -> list[str]:
        """A remark on each trajectory: whether it repeats what was recorded; empty where nothing was."""
        if self.expected is None:
            return [""] * len(trajectories)
        same = "the same tokens as in the results file"
        other = "not the tokens of the results file: the devices or versions round otherwise"
        last = same if trajectories[-1].answer == self.expected else other
        return [""] * (len(trajectories) - 1) + [last]


def from_run(folder: str | pathlib.Path, doc_id: int, repeat: int = 0) -> tuple[Run, Question]:
    """A run, and the question that one of its samples answers.

    Raises:
      FileNotFoundError: the folder is not there.
      ValueError: it is no run's folder, has no such sample, or was made by a version that records no prompts or knows
        other settings.
    """
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; give a run's folder, which holds settings.json")
    run = read_run(folder)
    sample = run.samples.get((doc_id, repeat))
    if sample is None:
        known = sorted(doc for doc, _ in run.samples)
        raise ValueError(f"{folder} has no answer to problem {doc_id}; it has {_listed(known)}")
    if "prompt" not in sample or "tokens" not in sample:
        raise ValueError(f"{folder} was made by an earlier version, which did not record prompts; run it again")
    fields = {field.name for field in dataclasses.fields(DecodeConfig)}
    unknown = sorted(run.decoding.keys() - fields)
    if unknown:
        raise ValueError(f"{folder} was decoded with settings that this version does not know: {', '.join(unknown)}")
    earlier = sum(
        other.get("prompt_digest") == sample["prompt_digest"] and key < (doc_id, repeat)
        for key, other in run.samples.items()
    )
    return run, Question(
        prompt=sample["prompt"],
        decode=DecodeConfig(**run.decoding),
        seed=answer_seed(run.settings["seed"], earlier),
        stop_strings=tuple(run.settings.get("until", ())),
        expected=tuple(sample["tokens"]),
    )


def check_sources(run: Run, given: Mapping[str, Any]) -> None:
    """Raises a ValueError where a run was made with other files than those given, by `provenance.identify`."""
    flags = {"backbone": f"--{run.family}_ckpt", "circuit": "--pc_ckpt", "adapter": "--peft_ckpt"}
    for part, flag in flags.items():
        before, now = run.settings.get(part), given.get(part)
        if before != now:
            named = before["source"] if isinstance(before, Mapping) else "none"
            raise ValueError(
                f"{run.path} was made with another {part}: {named} ({before}), not {now}; give it with {flag}"
            )


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown}, … {numbers[-1]}"
