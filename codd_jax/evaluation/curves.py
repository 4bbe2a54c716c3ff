"""Negative log-likelihood against mask ratio: token by token, one step factorised, one step coupled (paper, Fig. 1, 2).

Windows are met as block-wise decoding meets them, everything before known and everything after hidden. Their tokens are
revealed one by one in random order; each such moment is a masked window of some ratio, and what the backbone says of
the tokens revealed from there on is the sequential likelihood of exactly the tokens that the one-step curves predict.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from codd_jax.backbones import Transformer
from codd_jax.circuits import HMM
from codd_jax.training.objective import coupled_log_likelihoods, factorised_log_likelihoods
from codd_jax.training.potentials import Head, aligned_states
from codd_jax.training.rows import Rows, window_starts

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class CurveSettings:
    """What is measured.

    Attributes:
      ratios: shares of a window that are masked, each rounded to a whole number of tokens, at least one.
      windows: how many windows of the corpus, drawn evenly. sequential_windows: the first so many of them also token by
        token, which costs T passes of the backbone an order.
      orders: random orders in which each window is revealed.
      batch: rows a pass. seed: of windows and orders.
    """

    ratios: Sequence[float] = RATIOS
    windows: int = 256
    sequential_windows: int = 64
    orders: int = 8
    batch: int = 32
    seed: int = 0

    def __post_init__(self):
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"mask ratios are {list(self.ratios)}; each must be above 0 and at most 1")
        if min(self.windows, self.orders, self.batch) < 1 or self.sequential_windows < 0:
            raise ValueError("windows, orders and batch must be at least 1, and sequential_windows at least 0")

    def hidden_counts(self, length: int) -> list[int]:
        """Masked tokens of a window of `length` at each ratio."""
        return [max(1, round(ratio * length)) for ratio in self.ratios]


def measure_curves(
    backbone: Transformer,
    circuits: Mapping[str, HMM],
    groups: Sequence[Rows],
    settings: CurveSettings,
    folder: str | pathlib.Path,
    sources: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Likelihoods of every window and order, or of those that a stopped run left.

    Args:
      backbone: the denoiser. circuits: by the names that the curves will have, all with the rows' window length.
      groups: held-out rows, one group for each width.
      settings: what to measure.
      folder: gets `settings.json` and `likelihoods.jsonl`, a line a window and order; a run in the same folder with the
        same settings continues.
      sources: names of checkpoints and data, which must be equal when a run continues.
      progress: show a bar.

    Returns:
      The lines: `window`, `order`, and in nats, summed over the masked tokens, a list with an entry a ratio of each
      `sequential` (None where it was not asked for), `factorised` and `coupled` (by name).

    Raises:
      ValueError: a circuit of another window, no windows, or a folder made with other settings.
      FloatingPointError: NaN likelihoods.
    """
    length = groups[0].window if groups else 0
    for name, hmm in circuits.items():
        if hmm.length != length:
            raise ValueError(f"circuit {name} has windows of {hmm.length} tokens, the rows are laid out for {length}")
    file = _open(pathlib.Path(folder), {**dataclasses.asdict(settings), **(sources or {}), "circuits": list(circuits)})
    lines = _read_lines(file)
    done = {(line["window"], line["order"]) for line in lines}
    windows = draw_windows(groups, settings, aligned=not backbone.config.shift_logits)
    step = _make_step(backbone, length)
    score = _make_score(Head.of(backbone))
    counts = settings.hidden_counts(length)
    total = len(windows) * settings.orders
    with tqdm(total=total, initial=len(done), desc="likelihoods", unit="order", disable=not progress) as bar:
        for sequential in (True, False):
            for number, group in enumerate(groups):
                wanted = [
                    (index, order)
                    for index, (owner, *_) in enumerate(windows)
                    for order in range(settings.orders)
                    if owner == number
                    and (index < settings.sequential_windows) == sequential
                    and (index, order) not in done
                ]
                for first in range(0, len(wanted), settings.batch):
                    pairs = wanted[first : first + settings.batch]
                    found = _run_batch(step, score, circuits, group, windows, pairs, settings, counts, sequential)
                    with file.open("a", encoding="utf-8") as out:
                        out.writelines(json.dumps(line) + "\n" for line in found)
                    lines += found
                    bar.update(len(pairs))
    return lines


def draw_windows(groups: Sequence[Rows], settings: CurveSettings, aligned: bool) -> list[tuple[int, int, int]]:
    """(group, row, start) of `settings.windows` windows, or of all where there are fewer; ValueError for none."""
    rng = np.random.default_rng(settings.seed)
    every = [
        (number, row, int(start))
        for number, group in enumerate(groups)
        for row in range(len(group.tokens))
        for start in window_starts(
            rng, int(group.prompt_lengths[row]), int(group.lengths[row]), group.window, aligned=aligned
        )
    ]
    if not every:
        raise ValueError("there are no windows to measure: the corpus is empty")
    return [every[index] for index in rng.permutation(len(every))[: settings.windows]]


def _make_step(backbone: Transformer, length: int):
    """Compiled `step(rows, starts, order, revealed)` → aligned states [B, T, D], masked [B, T], the log-probability [B]
    of the token that is revealed next."""
    graphdef, params = nnx.split(backbone)
    mask_id = backbone.config.mask_id

    @jax.jit
    def step(params, tokens, lengths, starts, order, revealed):
        backbone = nnx.merge(graphdef, params)
        rank = jnp.argsort(order, axis=-1)
        masked = rank >= revealed
        ids = jnp.arange(tokens.shape[1])
        place = ids - starts[:, None]
        inside = (place >= 0) & (place < length)
        hidden = jnp.take_along_axis(masked, jnp.clip(place, 0, length - 1), axis=-1) & inside
        hidden |= (place >= length) & (ids < lengths[:, None])
        states = aligned_states(
            backbone, backbone.encode(jnp.where(hidden, mask_id, tokens), lengths), starts[:, None], length
        )[:, 0]
        following = order[:, jnp.minimum(revealed, length - 1)][:, None]
        state = jnp.take_along_axis(states, following[..., None], axis=1)
        target = jnp.take_along_axis(tokens, starts[:, None] + following, axis=-1)
        log_probs = Head.of(backbone).log_phi(state)
        return states, masked, jnp.take_along_axis(log_probs, target[..., None], axis=-1)[:, 0, 0]

    return lambda *arrays: step(params, *arrays)


def _make_score(head: Head):
    """Compiled `score(circuits, states, tokens, masked)` → (factorised [B], coupled [B] by name)."""

    @jax.jit
    def score(head, circuits, states, tokens, masked):
        log_phi = head.log_phi(states)
        coupled = {
            name: coupled_log_likelihoods(hmm, log_phi, tokens, masked, states) for name, hmm in circuits.items()
        }
        return factorised_log_likelihoods(log_phi, tokens, masked), coupled

    return lambda *arrays: score(head, *arrays)


def _run_batch(step, score, circuits, group: Rows, windows, pairs, settings: CurveSettings, counts, sequential: bool):
    """The lines of some (window, order) pairs of one group."""
    length = group.window
    filled = pairs + [pairs[0]] * (settings.batch - len(pairs))
    chosen = [windows[index] for index, _ in filled]
    tokens = np.asarray(group.tokens)[[row for _, row, _ in chosen]]
    lengths = np.asarray(group.lengths)[[row for _, row, _ in chosen]]
    starts = np.asarray([start for *_, start in chosen], np.int32)
    orders = np.stack([np.random.default_rng((settings.seed, *pair)).permutation(length) for pair in filled])
    clean = np.take_along_axis(tokens, starts[:, None] + np.arange(length), axis=1)
    moments = range(length - max(counts), length) if sequential else sorted({length - count for count in counts})
    revealed, scored = {}, {}
    for moment in moments:
        states, masked, following = step(tokens, lengths, starts, orders, np.int32(moment))
        revealed[moment] = following
        if length - moment in counts:
            scored[length - moment] = score(dict(circuits), states, clean, masked)
    revealed, scored = jax.device_get((revealed, scored))
    lines = []
    for place, (window, order) in enumerate(pairs):
        line = {
            "window": window,
            "order": order,
            "masked": counts,
            "sequential": [float(sum(revealed[at][place] for at in range(length - count, length))) for count in counts]
            if sequential
            else None,
            "factorised": [float(scored[count][0][place]) for count in counts],
            "coupled": {name: [float(scored[count][1][name][place]) for count in counts] for name in circuits},
        }
        values = [
            *line["factorised"],
            *(line["sequential"] or ()),
            *(x for row in line["coupled"].values() for x in row),
        ]
        if np.isnan(values).any():
            raise FloatingPointError(f"the likelihood of window {window} is NaN; is the checkpoint sound?")
        lines.append(line)
    return lines


def _open(folder: pathlib.Path, settings: dict[str, Any]) -> pathlib.Path:
    """The file of lines in a folder of these settings."""
    settings = json.loads(json.dumps(settings, default=str))
    stated = folder / "settings.json"
    if stated.is_file():
        before = json.loads(stated.read_text(encoding="utf-8"))
        changed = [
            f"{name}: {before.get(name)!r} there, {settings.get(name)!r} now"
            for name in sorted({*before, *settings})
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise ValueError(
                f"{folder} holds curves of other settings ({'; '.join(changed)}); choose another --output_dir, or "
                "repeat those settings to continue that run"
            )
    folder.mkdir(parents=True, exist_ok=True)
    stated.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder / "likelihoods.jsonl"


def _read_lines(file: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of a file; a torn last one, of a run that was killed, is taken off."""
    if not file.is_file():
        return []
    text = file.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        file.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]
