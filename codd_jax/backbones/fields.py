"""The values of a config.json, taken one by one: each of the kind it must be, or a ValueError naming file and key."""

import math
from collections.abc import Mapping
from typing import Any

_REQUIRED = object()


def require(config_json: Mapping[str, Any], key: str, where: str) -> Any:
    """The value of a key that must be present and not null, or a ValueError naming file and key."""
    if config_json.get(key) is None:
        raise ValueError(f"{where} has no value for {key!r}, without which the backbone cannot be built")
    return config_json[key]


def number(config_json: Mapping[str, Any], key: str, where: str, default: Any = _REQUIRED) -> float:
    """A finite number above zero; an absent key is `default`. A null is refused: it is no number."""
    value = require(config_json, key, where) if default is _REQUIRED else config_json.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{where}: {key} is {_shown(value)}; a finite number above 0 is expected")
    return float(value)


def integer(config_json: Mapping[str, Any], key: str, where: str, default: Any = _REQUIRED, least: int = 1) -> Any:
    """A whole number of at least `least`; an absent key or null is `default`, where there is one."""
    value = require(config_json, key, where) if default is _REQUIRED else config_json.get(key)
    if value is None:
        return default
    whole = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not whole or value != int(value) or not least <= value < 2**31:
        raise ValueError(f"{where}: {key} is {_shown(value)}; a whole number of at least {least} is expected")
    return int(value)


def token_id(config_json: Mapping[str, Any], key: str, where: str, default: Any = _REQUIRED) -> Any:
    """A token id, as `integer`; of a list, which some checkpoints give for eos_token_id, the first."""
    value = config_json.get(key)
    if isinstance(value, list) and value:
        config_json = {key: value[0]}
    return integer(config_json, key, where, default, least=-1)


def flag(config_json: Mapping[str, Any], key: str, where: str, default: bool = False) -> bool:
    """True or false; an absent key is `default`, a null is false."""
    value = config_json.get(key, default)
    if value is not None and not isinstance(value, bool | int):
        raise ValueError(f"{where}: {key} is {_shown(value)}; true or false is expected")
    return bool(value)


def refuse_unsupported(config_json: Mapping[str, Any], supported: Mapping[str, tuple], where: str) -> None:
    """Raise one ValueError listing every key whose value is outside its `supported` values (an absent key is fine)."""
    wrong = [
        f"{key}={config_json[key]!r} (supported: {', '.join(map(repr, values))})"
        for key, values in supported.items()
        if key in config_json and config_json[key] not in values
    ]
    if wrong:
        raise ValueError(f"{where} asks for what this port does not compute: {'; '.join(wrong)}")


def _shown(value: Any) -> str:
    return repr(value)[:80]
