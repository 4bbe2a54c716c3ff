"""Which requests are asked in one call, so that a run compiles few programs and its answers do not depend on how it was
cut up."""

import collections
from collections.abc import Hashable, Sequence


def occurrences(prompts: Sequence[Hashable]) -> list[int]:
    """How many equal prompts stand before each one: 0 for the first of its kind, 1 for its first repetition, …"""
    seen: collections.Counter = collections.Counter()
    counts = []
    for prompt in prompts:
        counts.append(seen[prompt])
        seen[prompt] += 1
    return counts


def group_by(kinds: Sequence[Hashable]) -> list[list[int]]:
    """The places of equal kinds together, in the order of first appearance."""
    groups: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(place)
    return list(groups.values())
