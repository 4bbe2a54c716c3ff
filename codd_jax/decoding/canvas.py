"""The canvas: a batch of partly masked rows on their way through decoding, and how rows are laid out and keyed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from codd_jax.distributed import fetch


@flax.struct.dataclass
class Block:
    """The stretch of a row that is being decoded; one row of each array per row of the canvas.

    Attributes:
      start, end: [B] int32, absolute positions; end is cut at the row's length.
      masks: [B] int32, masks in the block when it was begun: what an even schedule shares out.
      steps: [B] int32, steps this block may take. first_step: [B] int32, planned steps of the blocks before it.
      index: [B] int32, the block's place in its row, -1 before the first; step: [B] int32, steps since it was begun.
    """

    start: jax.Array
    end: jax.Array
    masks: jax.Array
    steps: jax.Array
    first_step: jax.Array
    index: jax.Array
    step: jax.Array


@flax.struct.dataclass
class Canvas:
    """Rows `[prompt | generation | padding]`; B rows of L positions.

    Attributes:
      tokens: [B, L] int32; masked positions hold the mask id, padding the pad id.
      given: [B, L] bool, known from the start (what guidance hides from the unconditional rows).
      prompt_lengths: [B] int32, where decoding begins. lengths: [B] int32, prompt and generation together.
      keys: [B] typed PRNG keys, one per row, the same whatever the batch.
      done: [B] bool, rows that will not change any more.
      steps_used: [B] int32, steps in which the row still had masks to fill.
      pc_failures: [B] int32, steps in which the circuit found the row's evidence impossible.
      bad_step: [B] int32, the first step whose logits were NaN or infinite, -1 if none.
      block: the stretch being decoded.
    """

    tokens: jax.Array
    given: jax.Array
    prompt_lengths: jax.Array
    lengths: jax.Array
    keys: jax.Array
    done: jax.Array
    steps_used: jax.Array
    pc_failures: jax.Array
    bad_step: jax.Array
    block: Block

    @property
    def call(self) -> jax.Array:
        """[B] int32, the next backbone call in each row's own plan (steps skipped by an early stop count)."""
        return self.block.first_step + self.block.step


def make_canvas(
    prompts: Sequence[Sequence[int]],
    gen_length: int | Sequence[int],
    mask_id: int,
    pad_id: int,
    seed: int = 0,
    *,
    bucket: int = 1,
    rows: int | None = None,
    keys: jax.Array | None = None,
    prompt_lengths: Sequence[int] | None = None,
) -> Canvas:
    """Lays out prompts and their masked continuations as one batch.

    Args:
      prompts: token ids per row; mask ids among them are positions to fill, too.
      gen_length: masks to append, one number or one per row (0 fills in the masks of the prompt alone).
      mask_id, pad_id: token ids.
      seed: of the row keys, where `keys` is None.
      bucket: L is rounded up to a multiple of it, so that runs over many lengths compile few programs.
      rows: B; further rows are empty and done from the start.
      keys: [len(prompts)] typed keys from `row_keys`, for batches cut out of a longer list of prompts.
      prompt_lengths: where decoding begins in each row; default the length of the prompt. 0 for filling gaps, whose
        text is decoded from the first position on.

    Raises:
      ValueError: no prompts, an empty row, more prompts than rows, or a prompt length beyond its row.
    """
    count = len(prompts)
    if count == 0:
        raise ValueError("there are no prompts to decode; pass at least one")
    batch = count if rows is None else rows
    if batch < count:
        raise ValueError(f"{count} prompts do not fit a batch of {batch} rows")
    extra = [int(gen_length)] * count if isinstance(gen_length, int | np.integer) else [int(n) for n in gen_length]
    if len(extra) != count:
        raise ValueError(f"gen_length has {len(extra)} entries for {count} prompts")
    lengths = np.ones(batch, np.int32)
    begins = np.ones(batch, np.int32)
    lengths[:count] = [len(prompt) + n for prompt, n in zip(prompts, extra, strict=True)]
    begins[:count] = [len(prompt) for prompt in prompts] if prompt_lengths is None else prompt_lengths
    for row in range(count):
        if len(prompts[row]) == 0:
            raise ValueError(f"prompt {row} is empty; it needs at least one token")
        if not 0 <= begins[row] <= lengths[row]:
            raise ValueError(f"row {row} begins at {begins[row]} but has {lengths[row]} tokens")
    width = -(-int(lengths.max()) // bucket) * bucket
    tokens, given = lay_out([*prompts, *[()] * (batch - count)], lengths, width, mask_id, pad_id)
    if keys is None:
        keys = row_keys(prompts, seed)
    keys = jnp.concatenate([keys, jnp.repeat(keys[:1], batch - count, axis=0)]) if batch > count else keys
    zeros = jnp.zeros(batch, jnp.int32)
    return Canvas(
        tokens=jnp.asarray(tokens),
        given=jnp.asarray(given),
        prompt_lengths=jnp.asarray(begins),
        lengths=jnp.asarray(lengths),
        keys=keys,
        done=jnp.asarray(np.arange(batch) >= count),
        steps_used=zeros,
        pc_failures=zeros,
        bad_step=zeros - 1,
        block=unbegun(batch),
    )


def lay_out(
    prompts: Sequence[Sequence[int]], lengths: np.ndarray, width: int, mask_id: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[prompt | masks | padding]` [B, width] int32, and what of them is given [B, width] bool.

    A row whose prompt is empty holds padding alone.
    """
    tokens = np.full((len(prompts), width), pad_id, np.int32)
    for row, prompt in enumerate(prompts):
        if len(prompt):
            tokens[row, : lengths[row]] = mask_id
            tokens[row, : len(prompt)] = prompt
    return tokens, (np.arange(width) < lengths[:, None]) & (tokens != mask_id)


def unbegun(batch: int) -> Block:
    """The block of rows that have begun none; shared buffers, so nothing may donate them."""
    zeros = jnp.zeros(batch, jnp.int32)
    return Block(start=zeros, end=zeros, masks=zeros, steps=zeros, first_step=zeros, index=zeros - 1, step=zeros)


def row_keys(prompts: Sequence[Sequence[int]], seed: int | Sequence[int]) -> jax.Array:
    """[len(prompts)] PRNG keys: fold_in(seed, hash of the prompt's ids, how often it came before in this list).

    Draws then depend neither on the order of the prompts nor on how they are cut into batches, and equal prompts get
    different answers. With a seed for each prompt, only equal prompts of equal seed count as coming before.
    """
    seeds = [seed] * len(prompts) if isinstance(seed, int | np.integer) else [int(each) for each in seed]
    if len(seeds) != len(prompts):
        raise ValueError(f"there are {len(seeds)} seeds for {len(prompts)} prompts; pass one seed, or one for each")
    seen: Counter[tuple[int, bytes]] = Counter()
    words = np.zeros((len(prompts), 3), np.uint32)
    for row, prompt in enumerate(prompts):
        ids = np.asarray(prompt, np.int32).tobytes()
        words[row, :2] = np.frombuffer(hashlib.blake2b(ids, digest_size=8).digest(), "<u4")
        words[row, 2] = seen[seeds[row], ids]
        seen[seeds[row], ids] += 1
    distinct = sorted(set(seeds))
    roots = jnp.stack([jax.random.key(each) for each in distinct])
    return _fold_words(roots[np.array([distinct.index(each) for each in seeds])], words)


@jax.jit
def _fold_words(roots: jax.Array, words: jax.Array) -> jax.Array:
    def fold(key, row):
        for i in range(words.shape[1]):
            key = jax.random.fold_in(key, row[i])
        return key

    return jax.vmap(fold)(roots, words)


def generations(canvas: Canvas, stop_ids: Sequence[int] = (), rows: int | None = None) -> list[np.ndarray]:
    """The decoded part of the first `rows` rows as int32 arrays, each cut before its first stop id."""
    tokens, begins, lengths = fetch((canvas.tokens, canvas.prompt_lengths, canvas.lengths))
    count = len(tokens) if rows is None else rows
    return [cut_before(tokens[row, begins[row] : lengths[row]], stop_ids) for row in range(count)]


def cut_before(ids: np.ndarray, stop_ids: Sequence[int]) -> np.ndarray:
    """The ids before the first that is a stop id."""
    stops = np.flatnonzero(np.isin(ids, list(stop_ids)))
    return ids[: stops[0]] if stops.size else ids
