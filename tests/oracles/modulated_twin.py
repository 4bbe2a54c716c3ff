"""A backbone made of tables of logits and hidden states, and the Python twin of decoding with a modulated circuit."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from codd_jax.circuits import HMM
from tests.oracles.decode_twins import Twin
from tests.oracles.modulated_hmm import modulated_case
from tests.oracles.tables import TableDenoiser


@dataclasses.dataclass(frozen=True)
class HiddenTableDenoiser(TableDenoiser):
    """Call i also shows the hidden states `hidden[i]` [L, D]; those of the unconditional half are not to be read."""

    def encode(self, params, tokens, lengths, call):
        logits = super().encode(params, tokens, lengths, call)
        hidden = params["hidden"][call]
        nothing = jnp.full((len(logits) - len(hidden), *hidden.shape[1:]), jnp.nan)
        return logits, jnp.concatenate([hidden, nothing])

    def head(self, params, features, positions):
        return super().head(params, features[0], positions)

    def hidden(self, params, features, positions):
        return jnp.take_along_axis(features[1], positions[..., None], axis=1)


class ModulatedTwin(Twin):
    """Writes out π, A and E of every window that it looks at, and goes on with that circuit."""

    def __init__(self, table, hidden, config, family, mask_id, hmm, uncond=None, stop_ids=()):
        super().__init__(table, config, family, mask_id, hmm, uncond, stop_ids)
        self.modulated, self.hidden = hmm, hidden

    def _latent(self, logits, first, step):
        self._look(first, step)
        return super()._latent(logits, first, step)

    def _redraw(self, logits, first, positions, count, step):
        self._look(first, step)
        return super()._redraw(logits, first, positions, count, step)

    def _look(self, first, step):
        here = np.arange(first, first + self.window)
        inside = here < len(self.tokens)
        here = np.minimum(here, len(self.tokens) - 1)
        masked = inside & (np.array(self.tokens)[here] == self.mask_id)
        nothing = np.zeros((self.window, self.modulated.vocab_size))
        case = modulated_case(
            self.modulated, nothing, here, inside, self.hidden[step][here], masked.sum() / inside.sum(), inside
        )
        # Latent potentials become part of the matrices, which need not sum to one for what is drawn here.
        weight = np.exp(case.log_latent - case.log_latent.max(-1, keepdims=True))
        parts = (case.initial * weight[0], case.transition * weight[1:, None, :], case.emission)
        self.hmm = HMM(
            *(jnp.asarray(x, jnp.float32) for x in parts),
            length=self.window,
            normalization=self.modulated.normalization,
        )
