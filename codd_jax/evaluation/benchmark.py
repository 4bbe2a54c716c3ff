"""A benchmark run from its options: everything that can be refused is refused before weights are loaded."""

import dataclasses
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax

from codd_jax import distributed, sharding
from codd_jax.backbones.config import BackboneConfig, check_length, config_from_huggingface
from codd_jax.decoding.config import DecodeConfig
from codd_jax.evaluation.harness import Evaluation, evaluate
from codd_jax.evaluation.memory import explain
from codd_jax.evaluation.models import Models, dtype_of
from codd_jax.evaluation.options import Options, check_permission, flags_named
from codd_jax.evaluation.presets import TaskPreset
from codd_jax.evaluation.problems import find_problems, load_task
from codd_jax.evaluation.provenance import identify
from codd_jax.evaluation.sampling import DeferredModel
from codd_jax.fitting.costs import CircuitShape
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
    circuit: CircuitShape | None
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
    coupled = about is not None and decode.coupling != "none"
    shape = CircuitShape(about.num_states, about.vocab_size, about.length) if coupled else None
    return Checked(config, tokenizer, shape, decode)


def load_model(options: Options, decode: DecodeConfig | None = None) -> CoDD:
    """The model with its weights on the devices; `decode` takes the place of decoding defaults stored with it."""
    return Models().get(options, decode)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A run that nothing known before its weights are read speaks against.

    Attributes:
      options: its command line. checked: what its checkpoint says.
      task: lm-eval's. evaluation: what is asked. folder: for its results.
    """

    options: Options
    checked: Checked
    task: Any
    evaluation: Evaluation
    folder: pathlib.Path

    def run(self, models: Models, *, progress: bool = True) -> dict[str, Any]:
        """Runs it, or what is left of it, and returns the summary.

        Raises:
          ValueError and OSError with the reason; MemoryError saying which batch size or mesh would fit.
        """
        config, decode = self.checked.config, self.checked.decode
        longest = [0]

        def load(prompt_lengths: Sequence[int]) -> CoDD:
            longest[0] = max(prompt_lengths) + decode.gen_length
            check_length(config, longest[0])
            # The longest prompt has just been warned of; the batches would each say it again.
            warnings.filterwarnings("ignore", message=".*exceeds the checkpoint's context")
            return models.get(self.options, decode)

        model = DeferredModel(self.checked.tokenizer, load)
        try:
            with warnings.catch_warnings():
                return evaluate(model, self.evaluation, self.task, self.folder, progress=progress)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            size = 4 if dtype_of(self.options) == "float32" else 2
            circuit, options = self.checked.circuit, self.options
            told = explain(error, config, circuit, options.batch_size, longest[0], options.mesh, size)
            if told is error:
                raise
            raise told from error


def prepare(options: Options, preset: TaskPreset, tasks: dict[Any, Any] | None = None) -> Benchmark:
    """Checks a run as far as possible without its weights.

    Args:
      options: the command line. preset: the benchmark.
      tasks: tasks that were built before, and takes new ones: runs over the same problems share them.

    Raises:
      ValueError and OSError with the reason.
    """
    check_permission(preset, options.run_generated_code)
    tasks = {} if tasks is None else tasks
    problems = find_problems(preset, options.data, options.num_shot) if options.data else None
    mesh = sharding.make_mesh(options.mesh)
    distributed.check_mesh(mesh)
    checked = inspect(options)
    asked = (preset.name, options.data, options.num_shot)
    if asked not in tasks:
        tasks[asked] = load_task(preset, problems, options.num_shot)
    evaluation = Evaluation(
        preset=preset,
        decode=checked.decode,
        num_shot=options.num_shot,
        limit=options.limit,
        seed=options.seed,
        batch_size=options.batch_size,
        mesh=options.mesh,
        replicated=[] if mesh is None else sharding.replicated_parts(checked.config, mesh.shape["model"]),
        run_generated_code=options.run_generated_code,
        sources={
            "family": options.family,
            "backbone": identify(options.checkpoint),
            "adapter": identify(options.adapter),
            "circuit": identify(options.circuit),
            "dtype": dtype_of(options),
            "problems": identify(problems.test) if problems else {"source": preset.hub_dataset},
            "worked_examples": identify(problems.train) if problems else None,
        },
    )
    folder = pathlib.Path(options.output_dir).expanduser() / options.run_name(preset.name)
    return Benchmark(options, checked, tasks[asked], evaluation, folder)


def run_benchmark(options: Options, preset: TaskPreset, *, progress: bool = True) -> pathlib.Path:
    """Runs a benchmark, or continues it, and returns the results' folder.

    Raises:
      ValueError and OSError with the reason, before weights are loaded wherever it can be known by then.
    """
    benchmark = prepare(options, preset)
    benchmark.run(Models(), progress=progress)
    return benchmark.folder
