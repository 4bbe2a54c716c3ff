"""The adapter_config.json of a PEFT adapter: what plain LoRA is, and a refusal by name of everything else."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

from codd_jax.jsonfile import read_json

CONFIG = "adapter_config.json"

# Options that do not change what is merged; `init_lora_weights` and the ones used below are looked at on their own.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "inference_mode", "layers_pattern"),
    *("layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save", "peft_type"),
    *("peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type", "use_rslora"),
    *("alpha_pattern", "rank_pattern", "fan_in_fan_out", "init_lora_weights", "lora_bias", "ensure_weight_tying"),
    *("eva_config", "runtime_config", "ephemeral_gpu_offload"),
}
_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "trainable_token_indices": "trainable token indices",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "layer_replication": "layer replication",
    "megatron_config": "Megatron layers",
}
# Other initialisations take something away from the base weights, so the adapter does not fit the published base.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The checked adapter_config.json of a LoRA adapter.

    Raises FileNotFoundError where there is none, and ValueError naming the kind of adapter or the option that is not
    merged: DoRA, LoHa, IA3, VeRA and others, PiSSA and other initialisations that change the base.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG}; give the folder of a PEFT adapter")
    config = read_json(path)
    kind = str(config.get("peft_type"))
    if kind.upper() != "LORA":
        raise ValueError(f"{path}: an adapter of kind {kind}; only plain LoRA is merged: merge it with PEFT first")
    for option, name in _REFUSED.items():
        if config.get(option):
            raise ValueError(f"{path}: {name} ({option}) is not supported; merge the adapter with PEFT first")
    start = config.get("init_lora_weights")
    if start not in _INITIALISATIONS:
        raise ValueError(
            f"{path}: init_lora_weights={start!r} changes the base weights; convert the adapter to plain LoRA first "
            "(PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)), or merge it with PEFT"
        )
    unknown = sorted(key for key, value in config.items() if value and key not in _HARMLESS)
    if unknown:
        raise ValueError(
            f"{path}: unknown option {unknown[0]}={config[unknown[0]]!r}; merge the adapter with PEFT first"
        )
    _check_numbers(config, path)
    names = config.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{path}: modules_to_save is {names!r}; a list of module names is expected")
    if config.get("fan_in_fan_out"):
        warnings.warn(
            f"{path}: fan_in_fan_out is set, but these backbones store weights [out, in]; as in PEFT it then has no "
            "effect",
            stacklevel=3,
        )
    return config


def _check_numbers(config: dict[str, Any], path: Path) -> None:
    """Rank and alpha, alone and by the patterns that set them for some modules."""

    def rank(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    def alpha(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    if not rank(config.get("r")):
        raise ValueError(f"{path}: r is {config.get('r')!r}; a rank of at least 1 is needed")
    if not alpha(config.get("lora_alpha", 8)):
        raise ValueError(f"{path}: lora_alpha is {config['lora_alpha']!r}; a number is needed")
    for key, fits in (("rank_pattern", rank), ("alpha_pattern", alpha)):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"{path}: {key} is {patterns!r}; an object of module names and numbers is expected")
        for expression, value in patterns.items():
            if not fits(value):
                raise ValueError(f"{path}: {key} gives {expression!r} the value {value!r}, which is no {key[:-8]}")
            try:
                re.compile(expression)
            except (re.error, RecursionError) as error:
                raise ValueError(f"{path}: {key} has {expression!r}, which is no pattern ({error})") from error
