"""A fine-tuned model on disk: a checkpoint that this project and PyTorch load, and a LoRA adapter by itself."""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
from flax import nnx

from codd_jax.backbones import BackboneConfig, Transformer
from codd_jax.backbones.config import family_module
from codd_jax.backbones.low_rank import has_lora, merge_lora
from codd_jax.io.circuit import save_circuit
from codd_jax.io.llama import save_as_transformers, transformers_config
from codd_jax.io.safetensors import save_huggingface
from codd_jax.model import CoDD
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.lora import save_adapter

LAYOUTS = ("own", "transformers")


def check_layout(config: BackboneConfig, layout: str) -> None:
    """Raises ValueError for an unknown layout, or one that cannot hold the backbone: before any training."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown; known are {', '.join(LAYOUTS)}")
    family_module(config.family).write_config(config)
    if layout == "transformers":
        transformers_config(config)


def save_tuned(
    folder: str | pathlib.Path,
    model: CoDD,
    config: JointTraining,
    *,
    base: str | None = None,
    dtype: str | None = None,
    layout: str = "own",
) -> dict[str, pathlib.Path]:
    """Write what `joint_finetune` made of a model.

    Args:
      folder: gets `model/`, a HuggingFace checkpoint in the family's own layout with LoRA merged, the tokenizer and
        the circuit, which `CoDD.from_pretrained(folder / "model")` loads whole; `adapter/` in PEFT's layout where LoRA
        was trained; and with layout "transformers" `transformers/`, the backbone as a Llama or a Qwen2.
      model: with LoRA factors beside the weights, if any. config: of the run.
      base: what an adapter says of its base model, a hub id or a folder.
      dtype: of the merged weights; None: what the backbone computes in.
      layout: "own", or "transformers" for both.

    Returns:
      The folders, by name.
    """
    folder = pathlib.Path(folder)
    check_layout(model.config, layout)
    found = {"model": folder / "model"}
    merged = cast(merge_lora(model.backbone), dtype or model.backbone.dtype)
    if has_lora(model.backbone):
        found["adapter"] = folder / "adapter"
        save_adapter(found["adapter"], model.backbone, config.lora, base=base)
    if model.hmm is not None:
        save_circuit(found["model"], model.hmm, {"mask_id": model.config.mask_id})
    places = [found["model"]]
    if layout == "transformers":
        found["transformers"] = folder / "transformers"
        save_as_transformers(merged, found["transformers"])
        places.append(found["transformers"])
    if model.tokenizer is not None:
        for place in places:
            model.tokenizer.save_pretrained(place)
    save_huggingface(merged, None, found["model"])  # last: its config.json makes the folder a checkpoint
    return found


def cast(backbone: Transformer, dtype: Any) -> Transformer:
    """The backbone with weights stored in `dtype`."""
    graphdef, state = nnx.split(backbone)
    stored = [(path, leaf.replace(leaf[...].astype(jnp.dtype(dtype)))) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(stored))
