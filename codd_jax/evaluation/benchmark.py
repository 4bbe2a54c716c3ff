"""A benchmark run from its options: everything that can be refused is refused before weights are loaded."""

import dataclasses
import pathlib
from typing import Any

import jax

from codd_jax import sharding
from codd_jax.backbones.config import BackboneConfig, check_length, config_from_huggingface
from codd_jax.evaluation.harness import Evaluation, evaluate
from codd_jax.evaluation.options import Options, flags_named, is_bundle
from codd_jax.evaluation.presets import TaskPreset
from codd_jax.evaluation.problems import find_problems, load_task
from codd_jax.evaluation.provenance import identify
from codd_jax.evaluation.results import ResultsFolder
from codd_jax.io import hub
from codd_jax.tokenizer import TOKENIZER_FILES, encode_text, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself without its weights."""

    config: BackboneConfig
    tokenizer: Any
    circuit_length: int | None
    decode: Any


def inspect(options: Options, **preset_changes: Any) -> Checkpoint:
    """Opens configuration, tokenizer and the circuit's description, and checks them against the options.

    Args:
      options: the command line.
      **preset_changes: as for `Options.decode_config`.

    Raises:
      ValueError: a checkpoint of another family, no chat template, a circuit for another backbone or another window.
      FileNotFoundError, PermissionError, ConnectionError: from `io.hub.resolve`.
    """
    from codd_jax.io.circuit import describe

    patterns = ["config.json", "codd.json", *TOKENIZER_FILES]
    folder = hub.resolve(options.checkpoint, allow_patterns=[*patterns, *(f"backbone/{name}" for name in patterns)])
    bundle = is_bundle(folder)
    circuit = options.circuit or (folder / "circuit" if bundle else None)
    folder = folder / "backbone" if bundle else folder
    options.require_circuit(circuit is not None)
    config = config_from_huggingface(folder)
    if config.family != options.family:
        raise ValueError(
            f"{options.checkpoint} is a {config.family} checkpoint, given as {options.family}; "
            f"use --{config.family}_ckpt {options.checkpoint}"
        )
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise ValueError(
            f"{options.checkpoint} has no chat template, and the benchmarks ask in chats; put the instruct model's "
            "chat_template.jinja, or a tokenizer_config.json that has one, into its folder"
        )
    about = describe(circuit) if circuit is not None else None
    decode = options.decode_config(about.length if about else None, **preset_changes)
    with flags_named():
        decode.validate_against(
            vocab_size=config.vocab_size,
            mask_id=config.mask_id,
            circuit_length=about.length if about else None,
            circuit_vocab_size=about.vocab_size if about else None,
            circuit_mask_id=about.mask_id if about else None,
        )
    return Checkpoint(config, tokenizer, about.length if about else None, decode)


def load_model(options: Options) -> Any:
    """The model with its weights on the devices."""
    from codd_jax.model import CoDD

    return CoDD.from_pretrained(
        options.checkpoint,
        circuit=options.circuit,
        adapter=options.adapter,
        dtype=options.dtype or default_dtype(),
        mesh=sharding.make_mesh(options.mesh),
    )


def default_dtype() -> str:
    """bfloat16 as the paper; float32 on CPUs, which emulate bfloat16 slowly."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def run_benchmark(options: Options, preset: TaskPreset, *, progress: bool = True) -> pathlib.Path:
    """Runs a benchmark, or continues it, and returns the results' folder.

    Raises:
      ValueError and OSError with the reason, before weights are loaded wherever it can be known by then.
    """
    problems = find_problems(preset, options.data, options.num_shot) if options.data else None
    sharding.make_mesh(options.mesh)
    checkpoint = inspect(options)
    task = load_task(preset, problems, options.num_shot)
    evaluation = Evaluation(
        preset=preset,
        decode=checkpoint.decode,
        num_shot=options.num_shot,
        limit=options.limit,
        seed=options.seed,
        batch_size=options.batch_size,
        sources={
            "backbone": identify(options.checkpoint),
            "adapter": identify(options.adapter),
            "circuit": identify(options.circuit),
            "dtype": options.dtype or default_dtype(),
            "problems": identify(problems.test) if problems else {"source": preset.hub_dataset},
            "worked_examples": identify(problems.train) if problems else None,
        },
    )
    folder = pathlib.Path(options.output_dir).expanduser() / options.run_name(preset.name)
    ResultsFolder(folder, evaluation.settings(task))
    _check_prompts(checkpoint, evaluation, task)
    evaluate(load_model(options), evaluation, task, folder, progress=progress)
    return folder


def _check_prompts(checkpoint: Checkpoint, evaluation: Evaluation, task: Any) -> None:
    """Warns of, or refuses, prompts that are too long for the model."""
    from codd_jax.evaluation.adapter import build_requests

    requests = build_requests(task, checkpoint.tokenizer, evaluation.preset.system_prompt, evaluation.limit)
    longest = max(len(encode_text(checkpoint.tokenizer, request.args[0])) for request in requests)
    check_length(checkpoint.config, longest + checkpoint.decode.gen_length)
