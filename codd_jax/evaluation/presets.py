"""The settings that evaluations run with when nothing else is asked for, registered here before any result is seen."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


@dataclasses.dataclass(frozen=True)
class TaskPreset:
    """What a benchmark is, for this project: lm-eval's own task, asked as the paper asks it.

    Attributes:
      name: the name on our command lines and in result files.
      harness_task: the name of lm-eval's task, ours where `task_file` changes it.
      harness_file: the stock definition, relative to lm-eval's folder of tasks.
      hub_dataset: where the stock task finds its problems.
      columns: the text fields that a local file of problems must have; list_columns: those that hold lists of texts.
      system_prompt: the paper's (appendix B of arXiv:2603.00045), as the published evaluation words it.
      headline: the metric that result pages lead with, as `metric,filter`; every other one is kept beside it.
      circuits: the published circuit nearest to this task, by backbone family.
      worked_examples: "train" takes them from training problems, "own" from the stock task itself, None has none.
      task_file: a definition of ours in `evaluation/tasks` that builds on the stock one.
      runs_code: answers are programs, and scoring runs them.
      timed_scoring: scoring gives up after some seconds, so that a busy machine may score an answer differently.
      gated: the hub hands the problems out after their conditions have been accepted.
    """

    name: str
    harness_task: str
    harness_file: str
    hub_dataset: str
    columns: tuple[str, ...]
    system_prompt: str
    headline: str
    list_columns: tuple[str, ...] = ()
    circuits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    worked_examples: str | None = "train"
    task_file: str | None = None
    runs_code: bool = False
    timed_scoring: bool = False
    gated: bool = False


_HELPFUL = "You are a helpful assistant."
_REASON = (
    f"{_HELPFUL} Justify your final answer by first explaining your step-by-step derivation or reasoning. Conclude by "
    "presenting the final answer in the format: "
)

TASKS: Mapping[str, TaskPreset] = MappingProxyType(
    {
        "gsm8k": TaskPreset(
            name="gsm8k",
            harness_task="gsm8k",
            harness_file="gsm8k/gsm8k.yaml",
            hub_dataset="openai/gsm8k",
            columns=("question", "answer"),
            system_prompt=_HELPFUL,
            headline="exact_match,flexible-extract",
            circuits={"llada": "il18/llada-gsm-pc", "dream": "il18/dream-gsm-pc"},
        ),
        "math500": TaskPreset(
            name="math500",
            harness_task="minerva_math500",
            harness_file="minerva_math/minerva_math500.yaml",
            hub_dataset="HuggingFaceH4/MATH-500",
            columns=("problem", "solution"),
            system_prompt=f"{_REASON}boxed{{ANSWER}}.",
            headline="math_verify,none",
            circuits={"llada": "il18/llada-math-pc", "dream": "il18/dream-math-pc"},
            worked_examples="own",
            timed_scoring=True,
        ),
        "gpqa": TaskPreset(
            name="gpqa",
            harness_task="gpqa_main_generative_n_shot",
            harness_file="gpqa/generative/gpqa_main_generative_n_shot.yaml",
            hub_dataset="Idavidrein/gpqa",
            columns=("Question", "Correct Answer", *(f"Incorrect Answer {number}" for number in (1, 2, 3))),
            system_prompt=f"{_REASON}(LETTER).",
            headline="exact_match,flexible-extract",
            circuits={"llada": "il18/llada-math-pc", "dream": "il18/dream-math-pc"},
            gated=True,
        ),
        "mbpp": TaskPreset(
            name="mbpp",
            harness_task="mbpp_instruct_tolerant",
            harness_file="mbpp/mbpp_instruct.yaml",
            hub_dataset="google-research-datasets/mbpp",
            columns=("text",),
            list_columns=("test_list",),
            system_prompt=_HELPFUL,
            headline="pass_at_1,extract_code",
            circuits={"llada": "il18/llada-code-pc", "dream": "il18/dream-code-pc"},
            worked_examples=None,
            task_file="mbpp_tolerant.yaml",
            runs_code=True,
            timed_scoring=True,
        ),
    }
)

# Decoding, by backbone. Names are DecodeConfig's. pc_temperature and pc_frac are the defaults of CoDD's command line:
# the paper chooses them per table cell, from τ in {0.1, 0.2, 0.7} and pc_frac in 0.3 to 0.8; here they are fixed
# beforehand. top_k=50 is not in the paper: Dream's official generation applies it when none is given, so its figures
# had it.
#                        LLaDA: block diffusion, greedy         Dream: full diffusion, dynamic windows, sampled
_DECODING_TABLE = {
    "remasking": ("low_confidence", "entropy"),
    "steps": (256, 256),
    "gen_length": (512, 512),
    "block_length": (32, None),
    "temperature": (0.0, 0.2),
    "top_p": (None, 0.95),
    "top_k": (None, 50),
    "cfg_scale": (0.0, 0.0),
    "pc_temperature": (0.7, 0.7),
    "pc_frac": (0.3, 0.3),
    "reverse_frac": (False, False),
    "coupling": ("latent", "latent"),
}
FAMILIES = ("llada", "dream")
DECODING: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        family: MappingProxyType({name: row[column] for name, row in _DECODING_TABLE.items()})
        for column, family in enumerate(FAMILIES)
    }
)

# One prompt of a user's own, backbone alone beside CoDD: the settings of the official example, where they differ.
SIDE_BY_SIDE: Mapping[str, Any] = MappingProxyType(
    {"steps": 64, "gen_length": 256, "pc_temperature": 0.1, "pc_frac": 0.7}
)

# The published checkpoints, for `--model_alias` alone.
CHECKPOINTS: Mapping[str, str] = MappingProxyType(
    {"llada": "GSAI-ML/LLaDA-8B-Instruct", "dream": "Dream-org/Dream-v0-Instruct-7B"}
)


def decoding_preset(family: str, **changes: Any) -> dict[str, Any]:
    """The keyword arguments of a DecodeConfig for a backbone family.

    Args:
      family: "llada" or "dream".
      **changes: put in place of the preset's values; None counts as "not given" for none of them, so leave a name out
        to keep the preset's value.

    Raises:
      ValueError: an unknown family.
    """
    if family not in DECODING:
        raise ValueError(f"no preset for the backbone family {family!r}; there are {', '.join(FAMILIES)}")
    return {**DECODING[family], **changes}
