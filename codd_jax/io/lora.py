"""PEFT LoRA adapters merged into a backbone's weights while they are read; the paper's RL baselines come this way."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from codd_jax.io.adapter_config import CONFIG, read_adapter_config
from codd_jax.io.mapped import map_tensor, view
from codd_jax.io.tensors import SafetensorsFolder, TensorSource

WEIGHTS = "adapter_model.safetensors"

_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.(?!weight$|bias$)[^.]+)?(\.(?P<leaf>weight|bias))?"
)
_ROWS_BYTES = 64 * 2**20


@dataclasses.dataclass
class _Delta:
    """What one module gets: weight += scale * B @ A, and its bias += scale * lora_B.bias."""

    a: str | None = None
    b: str | None = None
    bias: str | None = None
    embedding: bool = False
    transposed: bool = False
    scale: float = 0.0


class MergedSource:
    """A `TensorSource`: the tensors of `base` with a PEFT LoRA adapter merged in as each is read.

    A merged weight is computed in float32 and rounded once, to the base tensor's dtype or to a wider one that is asked
    for (`in_dtype`). Tensors that the adapter saved
    whole (`modules_to_save`, trained biases and norms, embeddings) replace those of the base.

    Raises:
      FileNotFoundError: the folder lacks adapter_config.json or adapter_model.safetensors.
      ValueError: another kind of adapter (DoRA, IA3, ...), or tensors that do not fit the base, listed together.
    """

    def __init__(self, base: TensorSource, folder: str | Path):
        self.base, self.folder = base, Path(folder)
        self.config = read_adapter_config(self.folder)
        if not (self.folder / WEIGHTS).is_file():
            found = sorted(file.name for file in self.folder.glob("adapter_model.*"))
            extra = f" (it holds {', '.join(found)}, which can run code and is not read)" if found else ""
            raise FileNotFoundError(
                f"{self.folder} holds no {WEIGHTS}{extra}; save the adapter again with "
                "save_pretrained(..., safe_serialization=True)"
            )
        self._adapter = SafetensorsFolder(self.folder / WEIGHTS)
        self._deltas: dict[str, _Delta] = {}
        self._replaced: dict[str, str] = {}
        self._wanted: np.dtype | None = None
        self._match()

    def in_dtype(self, dtype: Any) -> Self:
        """The same source for a reader that stores `dtype`: what is merged is not rounded to less on the way."""
        other = copy.copy(self)
        other._wanted = np.dtype(dtype)
        return other

    def changed(self) -> set[str]:
        """The names of the base's tensors that the adapter changes."""
        return {name for name in self.names() if self.touches(name)}

    def names(self) -> set[str]:
        """The base's names: an adapter adds none."""
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The base tensor's shape."""
        return self.base.shape(name)

    def dtype(self, name: str) -> np.dtype:
        """The base tensor's dtype, or the wider one asked for where the adapter takes part."""
        stored = self.base.dtype(name)
        wider = self._wanted is not None and self._wanted.itemsize > stored.itemsize and self.touches(name)
        return self._wanted if wider else stored

    def origin(self, name: str) -> str:
        """The base file, and the adapter where it takes part."""
        return self.base.origin(name) + (f" with {self.folder}" if self.touches(name) else "")

    def touches(self, name: str) -> bool:
        """Whether the adapter changes this tensor."""
        module, _, leaf = name.rpartition(".")
        delta = self._deltas.get(module)
        return name in self._replaced or (delta is not None and (leaf == "weight" or bool(delta.bias)))

    def view(self, name: str) -> np.ndarray:
        """The tensor, without copying it where the adapter leaves it alone."""
        return self.read(name) if self.touches(name) else view(self.base, name)

    def read(self, name: str) -> np.ndarray:
        """The merged tensor."""
        if not self.touches(name):
            return self.base.read(name)
        start = self._factor(self._replaced[name]) if name in self._replaced else view(self.base, name)
        merged = np.array(start, dtype=self.dtype(name))
        module, _, leaf = name.rpartition(".")
        delta = self._deltas.get(module)
        if delta is None or (leaf == "bias" and not delta.bias):
            return merged
        if leaf == "bias":
            bias = self._factor(delta.bias).astype(np.float32)
            return (merged.astype(np.float32) + delta.scale * bias).astype(merged.dtype)
        self._add(merged, delta)
        return merged

    def _add(self, weight: np.ndarray, delta: _Delta) -> None:
        """weight += scale * B A, some rows at a time: the float32 product of a big matrix is never held whole."""
        a, b = (self._factor(name).astype(np.float32) for name in (delta.a, delta.b))
        left, right = (a.T, b.T) if delta.transposed else (b, a)  # (B A)ᵀ = Aᵀ Bᵀ
        rows = max(1, _ROWS_BYTES // (4 * weight.shape[1]))
        for first in range(0, len(weight), rows):
            part = slice(first, first + rows)
            weight[part] = (weight[part].astype(np.float32) + delta.scale * (left[part] @ right)).astype(weight.dtype)

    def _factor(self, name: str) -> np.ndarray:
        return map_tensor(self.folder / WEIGHTS, name)

    def _match(self) -> None:
        """Assign every adapter tensor to a base tensor; everything that does not fit is reported together."""
        problems: list[str] = []
        shapes = {name: self._adapter.shape(name) for name in sorted(self._adapter.names())}
        for name in shapes:
            plain = re.sub(r"^base_model\.model\.", "", name)
            if ".original_module." in plain:  # PEFT's copy of what modules_to_save replaces
                continue
            if "lora_magnitude_vector" in plain:
                raise ValueError(f"{self.folder}: a DoRA adapter ({name}); only plain LoRA is merged")
            if found := _FACTOR.fullmatch(plain):
                module = self._base_name(found["module"] + ".weight")
                if module is None:
                    problems.append(f"{name}: the base has no module {found['module']}")
                    continue
                delta = self._deltas.setdefault(module.removesuffix(".weight"), _Delta())
                delta.embedding |= bool(found["embedding"])
                field = "bias" if found["leaf"] == "bias" else found["side"].lower()
                if other := getattr(delta, field):
                    problems.append(f"{other} and {name} are of one module: save one adapter alone")
                setattr(delta, field, name)
            else:
                target = self._base_name(
                    re.sub(r"\.(base_layer|original_module|modules_to_save(\.[^.]+)?)(?=\.)", "", plain)
                )
                if target is None:
                    problems.append(f"{name}: the base has no such tensor")
                elif shapes[name] != self.base.shape(target):
                    problems.append(f"{name} is {shapes[name]}, the base's {target} is {self.base.shape(target)}")
                elif target in self._replaced:
                    problems.append(f"{self._replaced[target]} and {name} both replace {target}")
                else:
                    self._replaced[target] = name
        for saved in self.config.get("modules_to_save") or ():
            if not any(f"{saved}." in target for target in (*self._replaced, *self._replaced.values())):
                problems.append(f"{CONFIG} lists {saved} under modules_to_save, and the file holds no tensor of it")
        for module, delta in self._deltas.items():
            problems += self._settle(module, delta, shapes)
        if not shapes:
            problems.append("it holds no tensors")
        if problems:
            raise ValueError(
                f"{self.folder} does not fit {self.base.origin(next(iter(self.base.names()), ''))}: "
                + "; ".join(problems[:8])
                + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            )

    def _settle(self, module: str, delta: _Delta, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Fix scale and orientation of one module's change; returns what is wrong with it."""
        if not (delta.a and delta.b):
            return [f"{module} has lora_{'B' if delta.b else 'A'} without its other half"]
        a, b, weight = shapes[delta.a], shapes[delta.b], self.base.shape(f"{module}.weight")
        rank, delta.scale = self._scale(module)
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            return [f"{module}: lora_A {a} and lora_B {b} are not of rank {rank}, which {CONFIG} gives"]
        product = (b[0], a[1])
        # An embedding's factors are stored for its transpose. Elsewhere `fan_in_fan_out` speaks of how the base layer
        # stores its weight; ours store [out, in], where PEFT itself ignores it, so only a weight that fits no other
        # way is taken as [in, out].
        turned = self.config.get("fan_in_fan_out") and product != weight and product[::-1] == weight
        delta.transposed = delta.embedding or bool(turned)
        if (product[::-1] if delta.transposed else product) != weight:
            return [f"{module}: lora_B {b} times lora_A {a} does not fit the weight {weight}"]
        if delta.bias:
            target = f"{module}.bias"
            if target not in self.base.names() or self.base.shape(target) != shapes[delta.bias]:
                return [f"{delta.bias}: the base has no {target} of shape {shapes[delta.bias]} to add it to"]
        return []

    def _scale(self, module: str) -> tuple[int, float]:
        """Rank and scale of a module: the patterns first, as PEFT matches them (the first that fits the name's end)."""
        config = self.config

        def pattern(key: str, default: Any) -> Any:
            for expression, value in (config.get(key) or {}).items():
                if re.match(rf"(.*\.)?({expression})$", module):
                    return value
            return default

        rank = int(pattern("rank_pattern", config["r"]))
        alpha = float(pattern("alpha_pattern", config.get("lora_alpha", 8)))
        return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def _base_name(self, name: str) -> str | None:
        """The base's name for an adapter's: the same, or with or without the outermost "model."."""
        candidates = (name, f"model.{name}", name.removeprefix("model."))
        return next((candidate for candidate in candidates if candidate in self.base.names()), None)
