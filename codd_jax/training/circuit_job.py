"""Circuit training from files to files: a checkpoint and text in; hidden states, a circuit and its history out."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from codd_jax.backbones import BackboneConfig, Transformer
from codd_jax.circuits import HMM
from codd_jax.evaluation.provenance import environment, identify
from codd_jax.io import checkpoint, hub, jpc
from codd_jax.io import circuit as circuit_io
from codd_jax.loading import floating
from codd_jax.sharding import make_mesh
from codd_jax.sources import cite
from codd_jax.tokenizer import load_tokenizer
from codd_jax.training.circuit_config import CircuitTraining
from codd_jax.training.dataset import Example, read_examples
from codd_jax.training.fresh import FreshWindows
from codd_jax.training.history import save_history
from codd_jax.training.initialisation import INITS, from_data, near_uniform
from codd_jax.training.modulated import RATE_BESIDE_HEADS, attach_modulation, parse_modulation
from codd_jax.training.potentials import Head, MemoryWindows, WindowSource
from codd_jax.training.rows import Rows, lay_out_groups
from codd_jax.training.rules import COUNT_RULES
from codd_jax.training.store import StoredWindows, build_store, fingerprint, fingerprint_rows
from codd_jax.training.trainer import TrainedCircuit, train_circuit

# Stored states up to this size are kept in memory.
_IN_MEMORY = 2**30
# Flags of experiments/train_circuit.py that are called what they set.
_SHARED = (
    *("rule", "rate", "modulation_rate", "momentum", "schedule", "seconds", "weighting", "normalization", "chunk"),
    *("potentials_dtype", "validate_every", "patience"),
)
_OWN = (
    *("data", "validation", "held_out", "question_field", "answer_field", "system", "split", "limit", "max_length"),
    *("window", "states", "init", "modulation", "masks", "masking", "on_the_fly", "windows_per_row", "batch_size"),
    *("dtype", "mesh", "seed", "data_seed", "to_jpc"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitJob:
    """What a circuit is trained on, and where it goes.

    Attributes:
      backbone: a hub id, a HuggingFace folder or a converted folder.
      data, validation, held_out, question_field, answer_field, system, split, limit, max_length: text, as
        `dataset.read_examples` and `rows.lay_out` take it; without `validation` the last `held_out` examples, in a
        random order, are not trained on.
      window: T. states: H; both are read from `init` where that is a circuit.
      init: "uniform", "data", or a circuit to start from. modulation: heads to put on it ("latent,noise"), or None.
      config: of the training. output: the folder that gets everything.
      on_the_fly: run the backbone at every step, and store nothing. store: where hidden states go, else.
      masks: how often a stored example is masked. masking: "uniform" or "blockwise".
      windows_per_row: of potentials on the fly. batch_size: windows of a step.
      dtype: of the backbone. mesh: as `make_mesh` reads it.
      seed: of the first circuit, the order of windows, and masks on the fly. data_seed: of the examples held out and of
        stored masks, so that states stored once serve every seed.
      to_jpc: write the circuit for PyJuice, too.
    """

    backbone: str
    data: str | None
    config: CircuitTraining
    output: pathlib.Path
    validation: str | None = None
    held_out: int = 256
    question_field: str = "question"
    answer_field: str = "answer"
    system: str | None = None
    split: str = "train"
    limit: int | None = None
    max_length: int = 1024
    window: int = 32
    states: int = 1024
    init: str = "uniform"
    modulation: str | None = None
    on_the_fly: bool = False
    store: pathlib.Path | None = None
    masks: int = 4
    masking: str = "uniform"
    windows_per_row: int = 4
    batch_size: int = 64
    dtype: str = "bfloat16"
    mesh: str | None = None
    seed: int = 0
    data_seed: int = 0
    to_jpc: bool = False


def read_job(args: argparse.Namespace) -> CircuitJob:
    """The job that the flags of `experiments/train_circuit.py` ask for; ValueError where they do not go together."""
    given = [ckpt for ckpt in (args.llada_ckpt, args.dream_ckpt) if ckpt]
    if len(given) != 1:
        raise ValueError(f"{len(given)} backbones are given; one of --llada_ckpt and --dream_ckpt is wanted")
    if args.on_the_fly and args.store is not None:
        raise ValueError("--on_the_fly stores nothing, and --store says where to; give one of them")
    config = CircuitTraining(steps=args.steps, **{name: getattr(args, name) for name in _SHARED})
    if args.modulation is not None and args.rate is None and config.rule == "adam":
        config = dataclasses.replace(config, rate=RATE_BESIDE_HEADS)
    return CircuitJob(
        backbone=given[0],
        config=config,
        output=args.output_dir,
        store=args.store,
        **{name: getattr(args, name) for name in _OWN},
    )


def run_job(
    job: CircuitJob,
    examples: tuple[Sequence[Example], Sequence[Example]] | None = None,
    progress: bool = True,
) -> tuple[TrainedCircuit, dict[str, pathlib.Path]]:
    """Trains and saves; what does not fit is found before weights are read.

    Args:
      job: what to do. examples: to learn from and held out, in place of reading `job.data`.
      progress: show bars.

    Returns:
      What was trained, and the paths of circuit, history and .jpc file.

    Raises:
      ValueError, OSError: files that are not there, cannot be read or do not fit each other.
    """
    source, hmm, about, config = prepare_job(job, examples, progress)
    folder, mesh = job.output / "checkpoints", make_mesh(job.mesh)
    trained = train_circuit(source, hmm, job.config, mesh=mesh, folder=folder, about=about, progress=progress)
    return trained, save_outputs(job, trained, config, about)


def prepare_job(
    job: CircuitJob,
    examples: tuple[Sequence[Example], Sequence[Example]] | None = None,
    progress: bool = True,
) -> tuple[WindowSource, HMM, dict[str, Any], BackboneConfig]:
    """(windows, the circuit to start from, what the run rests on, the backbone's configuration) of a job."""
    dtype, mesh = floating("dtype", job.dtype), make_mesh(job.mesh)
    job.config.check_batch(job.batch_size, 1 if mesh is None else mesh.size)
    kinds = None if job.modulation is None else parse_modulation(job.modulation)
    if job.to_jpc and kinds is not None:
        raise ValueError("a .jpc file cannot hold modulation; leave out --to_jpc, or train without --modulation")
    opened = checkpoint.open_backbone(hub.resolve(job.backbone))
    config = opened.config
    start, window = _read_start(job, config)
    _check_rule(job, kinds is not None or (start is not None and start.modulation is not None))
    tokenizer = load_tokenizer(opened.tokenizer_folder)
    rows, held_out = (
        lay_out_groups(part, window, config.eos_id, config.pad_id, max_length=job.max_length) if part else []
        for part in (_read_data(job, tokenizer) if examples is None else examples)
    )
    backbone = opened.load(dtype=dtype, mesh=mesh, layout="auto", progress=progress)
    about = {"data": identify(job.data), "tokenizer": _tokenizer_digest(tokenizer)}
    source = make_source(job, backbone, rows, held_out, mesh, about, progress)
    about |= {"seed": job.seed, "data_seed": job.data_seed, "masking": job.masking, "on_the_fly": job.on_the_fly}
    about |= {"backbone": fingerprint(backbone), "rows": fingerprint_rows(rows), "held_out": fingerprint_rows(held_out)}
    about |= {"masks": job.masks, "dtype": str(backbone.dtype), "windows_per_row": job.windows_per_row}
    hmm = starting_circuit(job, start, rows, source.head, window)
    if kinds is not None:
        hmm = attach_modulation(hmm, source.head.width, kinds[0], key=jax.random.key(job.seed), noise=kinds[1])
    return source, hmm, about, config


def _check_rule(job: CircuitJob, modulated: bool) -> None:
    """Raises ValueError where rule, objective, modulation and file format exclude each other, before any long work."""
    rule, objective = job.config.rule, job.config.normalization
    wanted = {"dual_ratio": "local", "ebw": "global"}.get(rule if isinstance(rule, str) else "")
    if wanted not in (None, objective):
        raise ValueError(f"{rule} trains the {wanted} objective, not the {objective} one; set normalization={wanted!r}")
    if modulated and rule in COUNT_RULES:
        raise ValueError(
            f"{rule} works on counts, and heads learn by gradients; use --rule adam for a modulated circuit"
        )
    if modulated and job.to_jpc:
        raise ValueError("a .jpc file cannot hold modulation; leave out --to_jpc, or train without --modulation")


def make_source(
    job: CircuitJob,
    backbone: Transformer,
    rows: Sequence[Rows],
    held_out: Sequence[Rows],
    mesh: jax.sharding.Mesh | None = None,
    about: dict[str, Any] | None = None,
    progress: bool = True,
) -> WindowSource:
    """The windows of a job: on the fly, or stored and, where they are small, kept in memory."""
    if job.on_the_fly:
        return FreshWindows(
            backbone,
            rows,
            held_out,
            batch_size=job.batch_size,
            windows_per_row=job.windows_per_row,
            scheme=job.masking,
            seed=job.seed,
            mesh=mesh,
        )
    folder = job.output / "states" if job.store is None else job.store
    made = {"scheme": job.masking, "progress": progress, "about": about}
    stores = [build_store(folder / "training", backbone, rows, masks=job.masks, seed=job.data_seed, **made)]
    if held_out:
        stores.append(build_store(folder / "validation", backbone, held_out, masks=2, seed=job.data_seed + 1, **made))
    head = Head.of(backbone)
    source = StoredWindows(head, *stores, batch_size=job.batch_size, seed=job.seed)
    if sum(store.num_windows for store in stores) * source.length * head.width * 4 > _IN_MEMORY:
        return source
    validation = stores[1].read(np.arange(stores[1].num_windows)) if held_out else None
    return MemoryWindows(head, source.windows(), validation, batch_size=job.batch_size, seed=job.seed)


def starting_circuit(job: CircuitJob, start: HMM | None, rows: Sequence[Rows], head: Head, window: int) -> HMM:
    """The circuit that training starts from."""
    if start is not None:
        return start
    key = jax.random.key(job.seed)
    if job.init == "uniform":
        return near_uniform(key, job.states, head.vocab_size, window)
    clean = [
        group.tokens[row, first : first + window]
        for group in rows
        for row in range(len(group.tokens))
        for first in range(group.prompt_lengths[row], group.lengths[row], window)
    ]
    return from_data(key, np.stack(clean), job.states, head.vocab_size)


def save_outputs(
    job: CircuitJob, trained: TrainedCircuit, config: BackboneConfig, about: dict[str, Any]
) -> dict[str, pathlib.Path]:
    """Writes circuit, history, plot and, if asked for, the .jpc file; returns their paths."""
    paths = {"circuit": job.output / "circuit"}
    facts = {"mask_id": config.mask_id, "backbone": cite(job.backbone)}
    circuit_io.save_circuit(paths["circuit"], trained.hmm, facts)
    described = {**dataclasses.asdict(job.config), "rule": str(job.config.rule)}
    history = {**trained.history, "settings": described, "about": about, "environment": environment()}
    paths["history"] = save_history(job.output, history)
    if job.to_jpc:
        paths["jpc"] = job.output / "circuit.jpc"
        jpc.write(paths["jpc"], trained.hmm)
    return paths


def _read_start(job: CircuitJob, config: BackboneConfig) -> tuple[HMM | None, int]:
    """(the circuit to start from, or None; the window length), checked against the backbone."""
    if job.init in INITS:
        return None, job.window
    if "/" not in job.init and not pathlib.Path(job.init).exists():
        raise ValueError(
            f"init is {job.init!r}; it must be one of {', '.join(INITS)}, or a circuit's file, folder or hub id"
        )
    info = circuit_io.describe(job.init)
    info.check_fit(config)
    return circuit_io.load_circuit(job.init, dtype="float32"), info.length


def _tokenizer_digest(tokenizer: Any) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def _read_data(job: CircuitJob, tokenizer: Any) -> tuple[list[Example], list[Example]]:
    """Examples to learn from, and held out."""
    if job.data is None:
        raise ValueError("--data is missing: a JSONL file or a hub data set to learn from")
    fields = {"question_field": job.question_field, "answer_field": job.answer_field, "system": job.system}
    examples = read_examples(job.data, tokenizer, split=job.split, limit=job.limit, **fields)
    if job.validation is not None:
        return examples, read_examples(job.validation, tokenizer, split="test", limit=job.held_out or None, **fields)
    if job.held_out >= len(examples):
        raise ValueError(
            f"{job.held_out} of {len(examples)} examples are to be held out, which leaves none to learn from; hold out "
            "fewer (--held_out) or give them apart (--validation)"
        )
    order = np.random.default_rng(job.data_seed).permutation(len(examples))
    cut = len(examples) - job.held_out
    return [examples[index] for index in order[:cut]], [examples[index] for index in order[cut:]]
