"""A benchmark run from its options: everything that can be refused is refused before weights are loaded."""

import dataclasses
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax

from codd_jax import sharding
from codd_jax.backbones.config import BackboneConfig, check_length, config_from_huggingface
from codd_jax.decoding.config import DecodeConfig
from codd_jax.evaluation.harness import Evaluation, evaluate
from codd_jax.evaluation.options import Options, check_permission, flags_named
from codd_jax.evaluation.presets import TaskPreset
from codd_jax.evaluation.problems import find_problems, load_task
from codd_jax.evaluation.provenance import identify
from codd_jax.evaluation.sampling import DeferredModel
from codd_jax.io import checkpoint, hub
from codd_jax.io import circuit as circuits
from codd_jax.model import CoDD
from codd_jax.tokenizer import TOKENIZER_FILES, load_tokenizer

# What says enough of a checkpoint to refuse it; circuits are small, and needed whole.
_ABOUT = ("config.json", "codd.json", *TOKENIZER_FILES)
_SMALL_FILES = (*_ABOUT, *(f"backbone/{name}" for name in _ABOUT), "*.jpc", "circuit.*", "circuit/**")


@dataclasses.dataclass(frozen=True)
class Checked:
    """What a checkpoint says of itself without its weights."""

    config: BackboneConfig
    tokenizer: Any
    circuit_length: int | None
    decode: Any


def inspect(options: Options, **preset_changes: Any) -> Checked:
    """Opens configuration, tokenizer and the circuit's description, and checks them against the options.

    Args:
      options: the command line.
      **preset_changes: as for `Options.decode_config`.

    Raises:
      ValueError: a checkpoint of another family, no chat template, a circuit for another backbone or another window.
      FileNotFoundError, PermissionError, ConnectionError: from `io.hub.resolve`.
    """
    folder, own_circuit = checkpoint.parts(hub.resolve(options.checkpoint, allow_patterns=_SMALL_FILES))
    if folder is None:
        raise ValueError(f"{options.checkpoint} is a circuit; give it as --pc_ckpt, and a backbone beside it")
    circuit = options.circuit or own_circuit
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
    about = circuits.describe(circuit) if circuit is not None else None
    decode = options.decode_config(about.length if about else None, **preset_changes)
    with flags_named():
        decode.validate_against(
            vocab_size=config.vocab_size,
            mask_id=config.mask_id,
            circuit_length=about.length if about else None,
            circuit_vocab_size=about.vocab_size if about else None,
            circuit_mask_id=about.mask_id if about else None,
        )
    return Checked(config, tokenizer, about.length if about else None, decode)


def load_model(options: Options, decode: DecodeConfig | None = None) -> CoDD:
    """The model with its weights on the devices; `decode` takes the place of decoding defaults stored with it."""
    return CoDD.from_pretrained(
        options.checkpoint,
        circuit=options.circuit,
        adapter=options.adapter,
        defaults=decode,
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
    check_permission(preset, options.run_generated_code)
    problems = find_problems(preset, options.data, options.num_shot) if options.data else None
    sharding.make_mesh(options.mesh)
    checked = inspect(options)
    task = load_task(preset, problems, options.num_shot)
    evaluation = Evaluation(
        preset=preset,
        decode=checked.decode,
        num_shot=options.num_shot,
        limit=options.limit,
        seed=options.seed,
        batch_size=options.batch_size,
        mesh=options.mesh,
        run_generated_code=options.run_generated_code,
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

    def load(prompt_lengths: Sequence[int]) -> CoDD:
        check_length(checked.config, max(prompt_lengths) + checked.decode.gen_length)
        # The longest prompt has just been warned of; the batches would each say it again.
        warnings.filterwarnings("ignore", message=".*exceeds the checkpoint's context")
        return load_model(options, checked.decode)

    with warnings.catch_warnings():
        evaluate(DeferredModel(checked.tokenizer, load), evaluation, task, folder, progress=progress)
    return folder
