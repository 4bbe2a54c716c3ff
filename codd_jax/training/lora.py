"""LoRA on a backbone: low-rank changes attached to chosen projections, and saved as PEFT saves them.

Source: LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from codd_jax.backbones import BackboneConfig, Transformer
from codd_jax.backbones.layers import LowRank
from codd_jax.backbones.low_rank import PROJECTIONS, has_lora, projections
from codd_jax.io.adapter_config import CONFIG
from codd_jax.io.lora import WEIGHTS
from codd_jax.io.safetensors import checkpoint_name
from codd_jax.io.tensors import write_safetensors
from codd_jax.io.workspace import write_json
from codd_jax.sharding import partition_spec


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which projections get a low-rank change, and how large.

    Attributes:
      rank: of the change. alpha: its scale is alpha / rank.
      targets: a regular expression that a projection's whole name matches: q, k, v, o, gate, up, down.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = "q|k|v|o|gate|up|down"

    def __post_init__(self):
        if self.rank < 1 or not 0 < self.alpha < float("inf"):
            raise ValueError(f"LoRA rank {self.rank} and alpha {self.alpha}: both must be above 0")
        try:
            chosen = self.chosen
        except re.error as error:
            raise ValueError(f"LoRA targets {self.targets!r} is no regular expression: {error}") from error
        if not chosen:
            raise ValueError(f"LoRA targets {self.targets!r} match none of {', '.join(PROJECTIONS)}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The projections that `targets` matches."""
        return tuple(name for name in PROJECTIONS if re.fullmatch(self.targets, name))


def add_lora(
    backbone: Transformer, config: LoraConfig, key: jax.Array, *, param_dtype: Any = jnp.float32, mesh=None
) -> Transformer:
    """The backbone with fresh low-rank factors beside the chosen projections; its logits are unchanged at first.

    Args:
      backbone: either layout; its arrays are shared, it is not changed itself.
      config: which projections, rank and scale.
      key: of the first factor, normal with variance 1 / in; the second starts at zero.
      param_dtype: of the factors. mesh: where given, the factors are placed as `codd_jax.sharding` says.

    Raises:
      ValueError: the backbone has factors already, or a rank above the smallest side of a chosen projection.
    """
    if has_lora(backbone):
        raise ValueError("the backbone has LoRA factors already; merge them first (merge_lora)")
    result = nnx.merge(*nnx.split(backbone))
    linears = projections(result, config.chosen)
    shapes = {name: linear.weight.shape for name, linear in linears}
    for name, (*_, out, into) in shapes.items():
        if config.rank > min(out, into):
            raise ValueError(f"LoRA rank {config.rank} exceeds {min(out, into)}, the smaller side of {name}")

    def factors(key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        made = {}
        for number, (name, (*layers, out, into)) in enumerate(shapes.items()):
            a = jax.random.normal(jax.random.fold_in(key, number), (*layers, config.rank, into)) * into**-0.5
            made[name] = a.astype(param_dtype), jnp.zeros((*layers, out, config.rank), param_dtype)
        return made

    places = {name: _shardings(result.config, name, len(shape), mesh) for name, shape in shapes.items()}
    made = jax.jit(factors, out_shardings=None if mesh is None else places)(key)
    for name, linear in linears:
        linear.lora = nnx.data(LowRank(*made[name], config.alpha / config.rank, linear.dtype))
    return result


def save_adapter(
    folder: str | pathlib.Path, backbone: Transformer, lora: LoraConfig, *, base: str | None = None,
    names: BackboneConfig | None = None,
) -> list[pathlib.Path]:  # fmt: skip
    """Write the factors as a PEFT adapter: adapter_config.json and adapter_model.safetensors, in the factors' dtype.

    Args:
      folder: gets the two files. backbone: with factors.
      lora: as given to `add_lora`.
      base: what PEFT is told of the base model, a hub id or a folder.
      names: whose family names the modules; None: the backbone's own.

    Raises:
      ValueError: the backbone has no factors.
    """
    if not has_lora(backbone):
        raise ValueError("the backbone has no LoRA factors; an adapter has nothing to hold")
    folder, config = pathlib.Path(folder), names or backbone.config
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, tuple[jax.Array, int | None]] = {}
    suffixes: dict[str, None] = {}
    for name, linear in projections(backbone):
        if linear.lora is None:
            continue
        projection = name.split(".")[-1]
        stacked = backbone.layout == "stacked"
        for layer in range(backbone.config.num_layers) if stacked else (int(name.split(".")[1]),):
            module = checkpoint_name(config, ("blocks", projection, "weight"), layer).removesuffix(".weight")
            suffixes[module.rsplit(".", 1)[-1]] = None
            for side, factor in (("A", linear.lora.a), ("B", linear.lora.b)):
                arrays[f"base_model.model.{module}.lora_{side}.weight"] = (factor[...], layer if stacked else None)

    def read(name: str) -> np.ndarray:
        array, layer = arrays[name]
        return np.asarray(array if layer is None else array[layer])

    specs = {name: (np.dtype(array.dtype), tuple(array.shape[array.ndim - 2 :])) for name, (array, _) in arrays.items()}
    (folder / CONFIG).unlink(missing_ok=True)
    write_safetensors(folder / WEIGHTS, specs, read)
    alpha = float(lora.alpha)
    settings = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "revision": None,
        "inference_mode": True, "r": lora.rank, "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        # LLaDA's head bears the name of a projection in the blocks: the modules are named with their parents.
        "target_modules": rf".*\.\d+\.(.*\.)?({'|'.join(sorted(suffixes))})",
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "modules_to_save": None,
        "init_lora_weights": True, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
    write_json(folder / CONFIG, settings)
    return [folder / CONFIG, folder / WEIGHTS]


def _shardings(config: BackboneConfig, name: str, rank: int, mesh: jax.sharding.Mesh | None) -> Any:
    """Where the two factors of a projection go."""
    if mesh is None:
        return None
    specs = (partition_spec((*name.split("."), "lora", side), rank, config, mesh.shape["model"]) for side in "ab")
    return tuple(jax.sharding.NamedSharding(mesh, spec) for spec in specs)
