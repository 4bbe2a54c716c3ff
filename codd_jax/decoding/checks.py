"""The checks of a configuration's values: each refuses with the value, what it may be, and the way out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def check_cache(cache: str, refresh: int | None, block_length: int | None, windows: str | None) -> None:
    """Refuses a refresh without a cache, and a cache without blocks."""
    if cache == "none":
        if refresh is not None:
            raise ValueError(
                f"cache_refresh is {refresh} but cache='none' keeps nothing that could be refreshed; "
                "set cache='prefix' or 'dual', or cache_refresh=None"
            )
        return
    if block_length is None:
        raise ValueError(
            f"cache={cache!r} keeps what lies outside the active block, and block_length=None makes the whole canvas "
            "one; set a block_length, or cache='none'"
        )
    if windows is not None:
        raise ValueError(
            f"cache={cache!r} computes the active block, and windows={windows!r} reaches beyond it; set windows=None, "
            "or cache='none'"
        )


def is_number(value: object) -> bool:
    """Whether a value is a number, which True and False are not."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def plain(value: object) -> object:
    """A NumPy number as Python's own, which JSON can hold; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def require_count(name: str, value: object, suffix: str = "") -> None:
    """Refuses what is not a whole number of at least 1."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1{suffix}")


def require_range(name: str, value: object, low: float, high: float, suffix: str = "") -> None:
    """Refuses what is not a finite number in [low, high)."""
    if not (is_number(value) and low <= value < high):
        raise ValueError(f"{name} is {value!r}; it must be a finite number of at least {low:g}{suffix}")


def listed(names: Sequence) -> str:
    """Names, separated by commas."""
    return ", ".join(str(name) for name in names)
