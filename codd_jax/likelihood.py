"""How probable a given completion is: the diffusion bound and one-step likelihoods, with and without the circuit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from codd_jax import circuits
from codd_jax.backbones.config import BackboneConfig, check_length
from codd_jax.circuits.context import batch_axes
from codd_jax.decoding.denoiser import check_hidden
from codd_jax.prompts import check_ids


@dataclasses.dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of one completion given its prompt, in nats (natural logarithm), summed over its tokens.

    Attributes:
      num_tokens: tokens of the completion.
      bound: Monte-Carlo estimate of the diffusion lower bound with the backbone alone (LLaDA, arXiv 2502.09992).
      bound_error: its standard error.
      factorized: everything predicted in one step, each token by itself (paper, figure 1, curve b).
      coupled_bound, coupled_bound_error, coupled: the same three with the circuit (paper, Eq. 7; curve c); None
        without one.
    """

    num_tokens: int
    bound: float
    bound_error: float
    factorized: float
    coupled_bound: float | None = None
    coupled_bound_error: float | None = None
    coupled: float | None = None


@dataclasses.dataclass(frozen=True)
class _Windows:
    """The circuit windows over a completion; the last one reaches left over known tokens, as it does in decoding."""

    positions: np.ndarray  # [windows * T] absolute positions
    own: np.ndarray  # [windows * T] True where the window scores the position; elsewhere its token is known

    @classmethod
    def over(cls, prompt_length: int, total: int, length: int) -> _Windows:
        starts = np.arange(prompt_length, total, length)
        positions = np.minimum(starts, total - length)[:, None] + np.arange(length)
        return cls(positions.reshape(-1), (positions >= starts[:, None]).reshape(-1))


@functools.partial(jax.jit, static_argnames=("denoiser", "length"))
def _score(denoiser, params, hmm, masked, truth, row_length, positions, own, length):
    """Log-probability of the masked tokens of each row: `masked`, `truth` [rows, L] → two arrays [rows]."""
    chex.assert_rank(masked, 2)
    chex.assert_equal_shape([masked, truth])
    rows = masked.shape[0]
    where = jnp.broadcast_to(positions, (rows, positions.size))
    follows = hmm is not None and hmm.modulation is not None
    states, call = None, jnp.int32(0)
    if follows:
        features = denoiser.encode(params, masked, jnp.full(rows, row_length), call)
        logits, states = denoiser.head(params, features, where), denoiser.hidden(params, features, where)
    else:
        logits = denoiser(params, masked, jnp.full(rows, row_length), where, call)
    chex.assert_shape(logits, (rows, positions.size, None))
    log_phi = jax.nn.log_softmax(logits.astype(jnp.float32))
    tokens = truth[:, positions]
    hidden = own & (masked[:, positions] != tokens)
    by_token = jnp.take_along_axis(log_phi, tokens[..., None], axis=-1)[..., 0]
    factorized = jnp.where(hidden, by_token, 0.0).sum(1)
    if hmm is None:
        return factorized, factorized

    def windows(array):
        return array.reshape(-1, length, *array.shape[2:])

    masked_share = windows(hidden).mean(-1, dtype=jnp.float32)
    context = circuits.modulate(hmm, windows(states), masked_share) if follows else None

    def score(log_phi, tokens, known, context):
        return circuits.conditional_log_likelihood(hmm, log_phi, tokens, known, hmm.normalization, context)

    axes = (0, 0, 0, batch_axes(context))
    coupled = jax.vmap(score, in_axes=axes)(windows(log_phi), windows(tokens), windows(~hidden), context)
    return factorized, coupled.reshape(rows, -1).sum(1)


def log_likelihood(
    denoiser,
    params,
    config,
    hmm: circuits.HMM | None,
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    num_samples: int = 32,
    batch_size: int = 8,
    seed: int = 0,
) -> LogLikelihood:
    """Scores a completion given its prompt; see `LogLikelihood` for what each number is.

    The bound masks l tokens of the n, l uniform on 1 … n, and weighs their log-probability with n / l; every l is
    drawn about equally often, which lowers the variance. Windows of the circuit lie one after another over the
    completion and are scored given the tokens before them.

    Args:
      prompt, completion: token ids; the completion must not hold the mask id.
      num_samples: maskings drawn for the bound.
      batch_size: maskings scored at once.
      seed: of the maskings.

    Raises:
      ValueError: empty prompt or completion, ids outside the vocabulary, a mask id in the completion, fewer tokens
        than the circuit's window, or more than the backbone can hold.
    """
    prompt = check_ids(prompt, "the prompt", config.vocab_size)
    completion = check_ids(completion, "the completion", config.vocab_size)
    total, count = len(prompt) + len(completion), len(completion)
    if not prompt or not completion:
        raise ValueError(f"a likelihood needs a prompt and a completion; got {len(prompt)} and {count} tokens")
    if config.mask_id in completion:
        raise ValueError(f"the completion holds the mask id {config.mask_id}; fill it in before scoring it")
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"num_samples ({num_samples}) and batch_size ({batch_size}) must be at least 1")
    if hmm is not None and hmm.modulation is not None:
        check_hidden(denoiser)
    if hmm is not None and total < hmm.length:
        raise ValueError(
            f"prompt and completion have {total} tokens, fewer than the circuit's window of {hmm.length}; "
            "score a longer text, or the backbone alone (circuit=False)"
        )
    check_length(config, total)
    rng = np.random.default_rng(seed % 2**64)
    counts = 1 + (rng.permutation(num_samples) * count // num_samples + rng.integers(count)) % count
    hidden = [rng.choice(count, size, replace=False) for size in counts]
    # The first row masks everything: the one-step likelihoods.
    rows = [len(prompt) + places for places in (np.arange(count), *hidden)]
    score = functools.partial(_score, denoiser, params, hmm)
    factorized, coupled = _score_rows(score, config, hmm, prompt, completion, rows, batch_size)
    plain = LogLikelihood(count, *_bound(factorized, counts, count), factorized[0])
    if hmm is None:
        return plain
    mean, error = _bound(coupled, counts, count)
    return dataclasses.replace(plain, coupled_bound=mean, coupled_bound_error=error, coupled=coupled[0])


def _score_rows(
    score: Callable[..., tuple[jax.Array, jax.Array]],
    config: BackboneConfig,
    hmm: circuits.HMM | None,
    prompt: list[int],
    completion: list[int],
    rows: Sequence[np.ndarray],
    batch_size: int,
) -> tuple[list[float], list[float]]:
    """Log-probabilities, factorised and coupled, of the positions that each of `rows` masks, `batch_size` at a time."""
    total = len(prompt) + len(completion)
    window = hmm.length if hmm is not None else min(32, total)
    windows = _Windows.over(len(prompt), total, window)
    padded = -(-total // 64) * 64  # a handful of programs for all lengths
    truth = np.full((batch_size, padded), config.pad_id, np.int32)
    truth[:, :total] = prompt + completion
    factorized, coupled = [], []
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        masked = truth.copy()
        for row, places in enumerate(chunk):
            masked[row, places] = config.mask_id
        scores = score(masked, truth, total, windows.positions, windows.own, window)
        for known, new in zip((factorized, coupled), scores, strict=True):
            known += np.asarray(new, np.float64)[: len(chunk)].tolist()
    return factorized, coupled


def _bound(values: Sequence[float], counts: np.ndarray, count: int) -> tuple[float, float]:
    """The bound and its standard error from one-step values (the first is not of the sample) and masked counts."""
    weighted = np.asarray(values[1:]) * count / counts
    error = weighted.std(ddof=1) / np.sqrt(len(counts)) if len(counts) > 1 else float("nan")
    return float(weighted.mean()), float(error)
