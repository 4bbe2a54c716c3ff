"""The sizes that a question of fit is about, read from presets, config.json and circuit files."""

from __future__ import annotations

import pathlib

from codd_jax.backbones.config import PRESETS, BackboneConfig, config_from_huggingface
from codd_jax.fitting.costs import CircuitShape
from codd_jax.io import checkpoint, hub
from codd_jax.io.circuit import describe


def read_backbone(ckpt: str | None, preset: str | None) -> tuple[str, BackboneConfig]:
    """Name and sizes of a backbone, from a checkpoint (its config.json, the folder, a hub id) or a preset (llada-8b).

    Raises ValueError for both at once; OSError and ValueError where there is no readable config.json.
    """
    if ckpt is None:
        return preset or "llada-8b", PRESETS[preset or "llada-8b"]
    if preset:
        raise ValueError(f"--preset {preset} and --ckpt {ckpt} are two backbones; give one of them")
    path = pathlib.Path(ckpt)
    if not path.is_file():
        folder = hub.resolve(ckpt, allow_patterns=["config.json", "codd.json", "*/config.json"])
        path = checkpoint.parts(folder)[0] or folder
    return path.resolve().name if path.is_dir() else path.resolve().parent.name, config_from_huggingface(path)


def read_circuit(text: str | None, config: BackboneConfig, emission_bytes: int = 4) -> CircuitShape | None:
    """A circuit's sizes, from "states,tokens,window", from a file, or as published for the backbone; "none": None.

    Raises ValueError where it is over another vocabulary.
    """
    if text == "none":
        return None
    if text is None:
        text = f"1024,{config.vocab_size},32"
    words = text.split(",")
    if len(words) == 3 and all(word.strip().isdigit() for word in words):
        states, tokens, length = map(int, words)
    else:
        info = describe(text)
        states, tokens, length = info.num_states, info.vocab_size, info.length
    if tokens != config.vocab_size:
        raise ValueError(f"the circuit is over {tokens} tokens, the backbone over {config.vocab_size}")
    return CircuitShape(states, tokens, length, emission_bytes)
