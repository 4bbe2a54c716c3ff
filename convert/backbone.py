"""LLaDA and Dream checkpoints, with or without a LoRA adapter → a converted backbone folder."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

from codd_jax.io.checkpoint import OpenBackbone, decode_defaults, open_backbone
from codd_jax.io.converted import write_backbone
from codd_jax.io.workspace import building
from convert.job import Job

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32), "keep": None}


def convert_backbone(job: Job) -> str:
    """Convert a backbone; returns what to tell the user."""
    opened = open_backbone(job.backbone, adapter=job.adapter)  # everything is checked before anything is written
    with building(job.out, job.identity(), overwrite=job.overwrite) as folder:
        write_into(folder, job, opened)
    return f"{describe(opened)} → {job.out}"


def write_into(folder: Path, job: Job, opened: OpenBackbone) -> None:
    """Write the backbone into a folder that is being built."""
    about = job.provenance()
    if defaults := decode_defaults(job.found):
        about["decoding"] = defaults
    write_backbone(folder, opened, dtype=DTYPES[job.dtype], about=about, progress=job.progress)


def describe(opened: OpenBackbone) -> str:
    """The backbone in a few words."""
    config = opened.config
    name = {"llada": "LLaDA", "dream": "Dream"}[config.family]
    return f"{name} backbone, {config.num_layers} layers of width {config.width}, {config.num_params:,} weights"
