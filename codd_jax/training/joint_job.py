"""Joint fine-tuning from files to files: checkpoint, circuit and data in; a tuned model, adapter and history out."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import warnings
from typing import Any

import numpy as np

from codd_jax.backbones import BackboneConfig
from codd_jax.io import checkpoint, hub
from codd_jax.io import circuit as circuit_io
from codd_jax.loading import floating
from codd_jax.model import CoDD
from codd_jax.sharding import make_mesh
from codd_jax.tokenizer import load_tokenizer
from codd_jax.training.dataset import Example, read_examples
from codd_jax.training.joint import Tuned, joint_finetune
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.joint_export import check_layout, save_tuned
from codd_jax.training.joint_parts import trained_names
from codd_jax.training.lora import LoraConfig
from codd_jax.training.rows import Rows, bucketed, lay_out

# Flags that are called what they set.
_SHARED = (
    *("train", "objective", "accumulate", "schedule", "weight_decay", "masking", "weighting", "param_dtype"),
    *("shard_over_data", "validate_every", "save_every", "seed"),
)
_OWN = (
    *("data", "validation", "held_out", "question_field", "answer_field", "system", "limit", "max_length"),
    *("dtype", "mesh", "layout"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointJob:
    """What is fine-tuned on what, and where it goes.

    Attributes:
      backbone: a hub id, a HuggingFace folder or a converted folder. circuit: a hub id, a .jpc file or a folder; None
        for the factorised objective.
      data: a JSONL file or a hub data set. validation: the same, held out; None: the last `held_out` examples of data.
      question_field, answer_field, system: as `dataset.read_examples`. limit: the first examples only.
      max_length: longer rows are left out; bucket: widths are multiples of it.
      window: of the rows where there is no circuit, else the circuit's.
      config: of the training. dtype: of the backbone's computation. mesh: as `make_mesh` reads it.
      output: gets checkpoints, history and the model. layout: as `joint_export.save_tuned`.
    """

    backbone: str
    circuit: str | None
    data: str
    config: JointTraining
    output: pathlib.Path
    validation: str | None = None
    held_out: int = 64
    question_field: str = "question"
    answer_field: str = "answer"
    system: str | None = None
    limit: int | None = None
    max_length: int = 1024
    bucket: int = 128
    window: int = 32
    dtype: str = "bfloat16"
    mesh: str | None = None
    layout: str = "own"


def read_job(args: argparse.Namespace) -> JointJob:
    """The job that the flags of `experiments/joint_finetune.py` ask for; ValueError where they do not go together."""
    given = [ckpt for ckpt in (args.llada_ckpt, args.dream_ckpt) if ckpt]
    if len(given) != 1:
        raise ValueError(f"{len(given)} backbones are given; one of --llada_ckpt and --dream_ckpt is wanted")
    if args.data is None:
        raise ValueError("--data is missing: a JSONL file or a hub data set to learn from")
    steps = args.steps or 1000
    rates = {"backbone_rate": 1e-5 if args.train == "full" else 1e-4, "circuit_rate": 0.01, "modulation_rate": 0.001}
    config = JointTraining(
        **{name: rate if getattr(args, name) is None else getattr(args, name) for name, rate in rates.items()},
        steps=steps,
        batch_size=args.batch_size or 8,
        train_circuit=not args.freeze_circuit and args.objective == "coupled",
        circuit_schedule=args.schedule,
        warmup=steps // 20 if args.warmup is None else args.warmup,
        clip_norm=args.clip_norm or None,
        lora=LoraConfig(args.rank, args.alpha, args.targets),
        remat=not args.no_remat,
        dtype=args.dtype,
        **{name: getattr(args, name) for name in _SHARED},
    )
    return JointJob(
        backbone=given[0],
        circuit=args.pc_ckpt,
        config=config,
        output=args.output_dir or pathlib.Path("runs/joint_finetune"),
        **{name: getattr(args, name) for name in _OWN},
    )


def run_job(job: JointJob, progress: bool = True) -> tuple[Tuned, dict[str, pathlib.Path]]:
    """Fine-tunes and saves; what does not fit is found before weights are read.

    Raises:
      ValueError, OSError: files that are not there, cannot be read or do not fit each other; see `joint_finetune`.
    """
    config, dtype = job.config, floating("dtype", job.dtype)
    floating("param_dtype", config.param_dtype)
    mesh = make_mesh(job.mesh)
    folder = hub.resolve(job.backbone)
    opened = checkpoint.open_backbone(folder)
    check_layout(opened.config, job.layout)
    if config.train != "lora":
        trained_names(opened.config, (), config.train)
    if job.circuit is None and config.objective == "coupled":
        raise ValueError(
            "the coupled objective needs a circuit (--pc_ckpt; `python -m experiments.train_circuit` makes one); or "
            "choose --objective factorised for the backbone alone"
        )
    window = job.window
    if job.circuit is not None:
        about = circuit_io.describe(job.circuit)
        about.check_fit(opened.config)
        window = about.length
    tokenizer = load_tokenizer(opened.tokenizer_folder)
    rows, validation = read_rows(job, tokenizer, opened.config, window)
    # Weights that are all trained are read in the dtype they are trained in; else the frozen ones are kept small.
    stored = config.param_dtype if config.train == "full" else dtype
    backbone = opened.load(dtype=dtype, param_dtype=stored, mesh=mesh, layout="auto", progress=progress)
    hmm = None if job.circuit is None else circuit_io.load_circuit(job.circuit, dtype="float32")
    model = CoDD(backbone, hmm, tokenizer, mesh=mesh)
    options = {"validation": validation, "folder": job.output, "consume": True, "progress": progress}
    tuned = joint_finetune(model, rows, config, **options)
    return tuned, save_tuned(
        job.output, tuned.model, config, base=str(job.backbone), dtype=job.dtype, layout=job.layout
    )


def read_rows(job: JointJob, tokenizer: Any, config: BackboneConfig, window: int) -> tuple[list[Rows], list[Rows]]:
    """Rows to learn from and held-out ones, by width.

    Raises:
      ValueError: nothing is left after holding out, or nothing fits `max_length`.
    """
    fields = {"question_field": job.question_field, "answer_field": job.answer_field, "system": job.system}
    examples = read_examples(job.data, tokenizer, limit=job.limit, **fields)
    if job.validation is not None:
        held_out = read_examples(job.validation, tokenizer, split="test", **fields)[: job.held_out or None]
    else:
        if job.held_out >= len(examples):
            raise ValueError(
                f"{job.held_out} of {len(examples)} examples are to be held out, which leaves none to learn from; hold "
                "out fewer (--held_out) or give them apart (--validation)"
            )
        order = np.random.default_rng(job.config.seed).permutation(len(examples))
        held_out = [examples[index] for index in order[len(examples) - job.held_out :]]
        examples = [examples[index] for index in order[: len(examples) - job.held_out]]
    return tuple(_groups(part, job, config, window) if part else [] for part in (examples, held_out))


def _groups(examples: list[Example], job: JointJob, config: BackboneConfig, window: int) -> list[Rows]:
    """Rows of one width each, without those that are too long."""
    fits = [e for e in examples if len(e.prompt) + (len(e.solution) // window + 1) * window <= job.max_length]
    if not fits:
        raise ValueError(
            f"none of {len(examples)} examples fits {job.max_length} positions; raise --max_length or use shorter ones"
        )
    if len(fits) < len(examples):
        warnings.warn(
            f"{len(examples) - len(fits)} of {len(examples)} examples are longer than {job.max_length} positions and "
            "are left out",
            stacklevel=3,
        )
    groups = bucketed(fits, window, job.bucket)
    return [
        lay_out([fits[index] for index in group], window, config.eos_id, config.pad_id, bucket=job.bucket)
        for group in groups
    ]
