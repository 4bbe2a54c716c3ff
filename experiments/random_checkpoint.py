"""Write a checkpoint of random weights in HuggingFace layout, of a published model's true width and any depth.

python -m experiments.random_checkpoint OUT --preset llada-8b --layers 2      # 2.9 GB in bfloat16
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from codd_jax.backbones.config import PRESETS, BackboneConfig, family_module
from codd_jax.io.safetensors import checkpoint_name, expected_shapes
from codd_jax.io.tensors import write_safetensors

_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


def write_checkpoint(
    folder: str | Path, config: BackboneConfig, *, dtype: str = "bfloat16", seed: int = 0, shard_bytes: int = 4 * 10**9
) -> Path:
    """Write config.json and safetensors shards with their index; one tensor in memory at a time."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = _DTYPES[dtype]
    specs = {checkpoint_name(config, *key): (stored, shape) for key, shape in expected_shapes(config).items()}
    pool = np.random.default_rng(seed).standard_normal(2**22, np.float32)  # repeated: speed matters, statistics do not
    bar = tqdm(total=len(specs), desc="writing", unit="tensor")

    def read(name: str) -> np.ndarray:
        bar.update()
        shape = specs[name][1]
        if len(shape) == 1:
            return np.ones(shape, stored) if "norm" in name or "ln_f" in name else np.zeros(shape, stored)
        flat = np.empty(math.prod(shape), stored)
        for first in range(0, len(flat), len(pool)):
            part = flat[first : first + len(pool)]
            start = bar.n * 7919 % (len(pool) - len(part) + 1)
            part[:] = pool[start : start + len(part)] * np.float32(shape[-1] ** -0.5)
        return flat.reshape(shape)

    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, (_, shape) in specs.items():
        size = stored.itemsize * math.prod(shape)
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        write_safetensors(folder / file, {name: specs[name] for name in names}, read)
    bar.close()
    index = {
        "metadata": {},
        "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(family_module(config.family).write_config(config), indent=2))
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, write, print the path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="llada-8b")
    parser.add_argument("--layers", type=int, help="in place of the preset's number")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    config = PRESETS[options.preset]
    if options.layers is not None:
        if options.layers < 1:
            parser.error(f"--layers is {options.layers}; at least 1 is needed")
        config = dataclasses.replace(config, num_layers=options.layers)
    print(write_checkpoint(options.out, config, dtype=options.dtype, seed=options.seed))


if __name__ == "__main__":
    main()
