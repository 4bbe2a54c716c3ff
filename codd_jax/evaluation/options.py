"""A benchmark's command line as one checked object: flags that contradict each other stop here, before any loading."""

import argparse
import contextlib
import dataclasses
import pathlib
import re
from typing import Any

from codd_jax.evaluation.flags import ALWAYS
from codd_jax.evaluation.presets import CHECKPOINTS, DECODING, TaskPreset, decoding_preset

# Flags that set a field of DecodeConfig, and the field where it has another name.
_DECODE_FLAGS = (
    *("alg", "num_steps", "gen_length", "block_length", "temperature", "top_p", "top_k", "cfg_scale"),
    *("threshold", "threshold_factor", "cache", "cache_refresh"),
    *("coupling", "pc_temperature", "pc_frac", "reverse_frac"),
)
_FIELDS = {"alg": "remasking", "num_steps": "steps"}
# What is written for "no bound", which is None in a DecodeConfig and would read as "not given" here.
_OFF = {"pc_frac": ALWAYS, "top_k": 0}
_CIRCUIT_FLAGS = ("pc_temperature", "pc_frac", "reverse_frac", "coupling", "dream_window")
_TAKEN_AS_THEY_ARE = ("mesh", "dtype", "seed", "batch_size", "data", "limit", "num_shot", "output_dir", "tag")


@dataclasses.dataclass(frozen=True)
class Options:
    """A command line, checked as far as it can be without opening a checkpoint.

    Attributes:
      family: "llada" or "dream", as the flags say; the checkpoint must agree.
      checkpoint, adapter, circuit: hub ids or paths; None where not given.
      decoding: the fields of DecodeConfig that were given.
      windows: how a full canvas is cut into the circuit's windows, "cover" or "best"; None for blocks.
      circuit_flags: flags that were given and mean nothing without a circuit.
    The others as the flags of the same name.
    """

    family: str
    checkpoint: str
    adapter: str | None
    circuit: str | None
    decoding: dict[str, Any]
    windows: str | None
    circuit_flags: tuple[str, ...]
    mesh: str | None
    dtype: str | None
    seed: int
    batch_size: int
    data: str | None
    limit: int | None
    num_shot: int
    output_dir: str
    tag: str | None
    run_generated_code: bool = False

    def require_circuit(self, has_circuit: bool) -> None:
        """A ValueError if a flag steers a circuit that is not there."""
        if self.circuit_flags and not has_circuit:
            listed = ", ".join(f"--{name}" for name in self.circuit_flags)
            raise ValueError(f"{listed} without a circuit to steer; name one with --pc_ckpt")

    def decode_config(self, circuit_length: int | None = None, **preset_changes: Any) -> Any:
        """The `DecodeConfig`: the family's preset, changed by what was given.

        Args:
          circuit_length: T of the circuit; None without one, which then also turns coupling off.
          **preset_changes: replace the preset's values where no flag was given.

        Raises:
          ValueError: a value that DecodeConfig refuses; the message names the flag.
        """
        # Importing the decoder imports JAX; --help and faulty flags should not wait for it.
        from codd_jax.decoding.config import DecodeConfig, check_steps

        preset = decoding_preset(self.family, **preset_changes)
        if self.windows is None:
            # Dream in blocks takes LLaDA's length; a shorter circuit sets it for either.
            preset["block_length"] = min(DECODING["llada"]["block_length"], circuit_length or 10**9)
        if circuit_length is None:
            preset["coupling"] = "none"
        fields = {**preset, **self.decoding}
        blocks = -(-fields["gen_length"] // (fields["block_length"] or fields["gen_length"]))
        if "steps" not in self.decoding:
            # Another length keeps the preset's tokens per step, with at least one step for each block.
            fields["steps"] = max(preset["steps"] * fields["gen_length"] // preset["gen_length"], blocks)
        if fields["coupling"] != "none":
            fields["windows"] = self.windows
        with flags_named():
            config = DecodeConfig(**fields)
            check_steps(config, blocks)
            return config

    def run_name(self, task: str) -> str:
        """A folder's name that tells runs apart at a glance; what it leaves out is compared when a run continues."""
        parts = [f"{self.num_shot}shot", self.family, task]
        parts += ["peft"] * bool(self.adapter) + ["block"] * (self.family == "dream" and self.windows is None)
        if self.circuit:
            parts.append(f"pc_{pathlib.PurePath(self.circuit).name.removesuffix('.jpc')}")
        for name in _DECODE_FLAGS:
            if (field := _FIELDS.get(name, name)) in self.decoding:
                value = self.decoding[field]
                parts.append(f"{name}={_OFF[name] if value is None else value}")
        parts += [f"seed={self.seed}"] * bool(self.seed) + [self.tag] * bool(self.tag)
        return "_".join(parts)


def read_options(args: argparse.Namespace, preset: TaskPreset) -> Options:
    """Checks the flags of `flags.add_benchmark_flags` against each other.

    Raises:
      ValueError: a value out of range or flags that contradict each other; the message names the flags.
    """
    if args.task != preset.name:
        raise ValueError(f"--task {args.task}: this script evaluates {preset.name}")
    family, checkpoint = _choose_checkpoint(args)
    _check_layout(args, family)
    if args.tag and not re.fullmatch(r"[\w.=+-]+", args.tag):
        raise ValueError(f"--tag {args.tag!r} goes into a folder's name; use letters, digits and . _ = + -")
    decoding = {_FIELDS.get(name, name): getattr(args, name) for name in _DECODE_FLAGS}
    decoding = {name: value for name, value in decoding.items() if value is not None}
    decoding |= {name: None for name, off in _OFF.items() if getattr(args, name) == off}
    check_permission(preset, getattr(args, "run_generated_code", False))
    options = Options(
        family=family,
        checkpoint=checkpoint,
        adapter=args.peft_ckpt,
        circuit=args.pc_ckpt,
        decoding=decoding,
        windows=None if family == "llada" or args.dream_block else args.dream_window or "cover",
        circuit_flags=tuple(name for name in _CIRCUIT_FLAGS if getattr(args, name) not in (None, "none")),
        run_generated_code=getattr(args, "run_generated_code", False),
        **{name: getattr(args, name) for name in _TAKEN_AS_THEY_ARE},
    )
    if options.circuit_flags and options.circuit is None and pathlib.Path(checkpoint).exists():
        options.require_circuit(_has_own_circuit(checkpoint))
    options.decode_config()
    return options


def check_permission(preset: TaskPreset, run_generated_code: bool) -> None:
    """Raises a ValueError for a task that runs programs out of answers, without the word to do so."""
    if preset.runs_code and not run_generated_code:
        raise ValueError(
            f"{preset.name} scores answers by running them: a model's programs would run on this machine, in processes "
            "with limits on time and memory but in no sandbox. Say --run_generated_code to do so, best in a container"
        )


def _has_own_circuit(folder: str) -> bool:
    """Whether a local folder holds a circuit beside its backbone, as `CoDD.save_pretrained` writes them."""
    from codd_jax.io.checkpoint import parts

    return parts(folder)[1] is not None


def _choose_checkpoint(args: argparse.Namespace) -> tuple[str, str]:
    """Family and source of the backbone."""
    if args.llada_ckpt and args.dream_ckpt:
        raise ValueError("--llada_ckpt and --dream_ckpt were both given; a run evaluates one backbone")
    family = "llada" if args.llada_ckpt else "dream" if args.dream_ckpt else args.model_alias
    if family is None:
        raise ValueError("there is no model; give --llada_ckpt or --dream_ckpt")
    if args.model_alias not in (None, family):
        raise ValueError(f"--model_alias {args.model_alias} contradicts --{family}_ckpt; leave one of them out")
    return family, args.llada_ckpt or args.dream_ckpt or CHECKPOINTS[family]


def _check_layout(args: argparse.Namespace, family: str) -> None:
    """Blocks or a full canvas, for the family at hand."""
    if family == "llada" and (args.dream_block or args.dream_window):
        raise ValueError(f"--dream_{'block' if args.dream_block else 'window'} is for Dream; this backbone is LLaDA")
    if args.dream_block and args.dream_window:
        raise ValueError("--dream_block and --dream_window exclude each other: blocks, or windows on a full canvas")
    if family == "dream" and not args.dream_block and args.block_length is not None:
        raise ValueError(
            "--block_length: Dream decodes its full canvas at once, with windows as long as the circuit; add "
            "--dream_block to decode it in blocks"
        )


@contextlib.contextmanager
def flags_named():
    """Turns the field's name in a complaint of DecodeConfig into the flag's."""
    flags = {_FIELDS.get(name, name): name for name in _DECODE_FLAGS}
    try:
        yield
    except ValueError as error:
        field = re.match(r"\w+", str(error))
        flag = flags.get(field[0]) if field else None
        raise (ValueError(f"--{flag}{str(error)[field.end() :]}") if flag else error) from None
