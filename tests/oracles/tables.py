"""A backbone made of logit tables, and a recorder of every intermediate canvas."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from codd_jax import decoding


@dataclasses.dataclass(frozen=True)
class TableDenoiser:
    """A row's call i reads `logits[i]` [L, V]; the unconditional half of guided batches reads `uncond[i]`."""

    guided: bool = False

    def encode(self, params, tokens, lengths, call):
        return jnp.concatenate([params[name][call] for name in self._names()])

    def head(self, params, features, positions):
        return jnp.take_along_axis(features, positions[..., None], axis=1)

    def __call__(self, params, tokens, lengths, positions, call):
        return self.head(params, self.encode(params, tokens, lengths, call), positions)

    def _names(self):
        return ("logits", "uncond") if self.guided else ("logits",)


def trajectory(denoiser, params, canvas, strategy, numbers, hmm=None, strays=None):
    """Tokens [steps, B, L] after every planned step, one `denoise_step` at a time, and the last canvas."""
    seen = []
    for index in range(decoding.num_blocks(canvas, strategy)):
        canvas, survey = decoding.begin_block(canvas, strategy, numbers, np.int32(index))
        room = int(survey.strays) if strays is None else strays
        for _ in range(int(canvas.block.steps.max())):
            canvas = decoding.denoise_step(denoiser, params, canvas, strategy, numbers, hmm, strays=room and 8)
            seen.append(np.asarray(canvas.tokens))
    return np.stack(seen), canvas


def left_padded_rows(prompt: np.ndarray, mask: np.ndarray | None) -> list[list[int]]:
    """Prompts [B, P] without their left padding."""
    keep = np.ones_like(prompt, bool) if mask is None else mask.astype(bool)
    return [row[kept].tolist() for row, kept in zip(prompt, keep, strict=True)]


def one_state_circuit(probabilities: np.ndarray):
    """The circuit of one latent state whose position t emits `probabilities[t]` [T, V]."""
    from codd_jax.circuits import HMM

    length = probabilities.shape[0]
    one = jnp.ones((1,), jnp.float32)
    return HMM(one, jnp.ones((1, 1), jnp.float32), jnp.asarray(probabilities)[:, None, :], length=length)


def repeat_rows(canvas, times: int):
    """The canvas with each row repeated; keys too."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0) if x.ndim else x, canvas)
