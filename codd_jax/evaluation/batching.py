"""Which requests go through the model together, so that a run compiles few programs and its answers do not depend on
how it was cut into batches."""

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


def plan_batches(lengths: Sequence[int], batch_size: int, groups: Sequence[int] | None = None) -> list[list[int]]:
    """Cuts requests into batches of similar length.

    The longest come first: if the device's memory is too small, the run says so at its first batch and not after
    hours; and batch mates share a length bucket, so little padding is computed.

    Args:
      lengths: the prompts' numbers of tokens.
      batch_size: rows in a batch, at most.
      groups: requests of different groups never share a batch; lower groups go first.

    Returns:
      Batches of indices into `lengths`; each index exactly once.

    Raises:
      ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; a batch holds at least one request")
    groups = [0] * len(lengths) if groups is None else groups
    batches: list[list[int]] = []
    for group in sorted(set(groups)):
        members = [index for index in range(len(lengths)) if groups[index] == group]
        members.sort(key=lambda index: (-lengths[index], index))
        batches += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return batches
