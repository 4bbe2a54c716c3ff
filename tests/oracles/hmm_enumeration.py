"""Every circuit quantity by summing over all token and latent sequences, in float64 NumPy, on tiny sizes."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Case:
    """One window with its circuit and evidence, float64: π [H], A [T-1,H,H], E [T,H,V], φ [T,V], tokens, known, g."""

    initial: np.ndarray
    transition: np.ndarray
    emission: np.ndarray
    log_phi: np.ndarray
    tokens: np.ndarray
    known: np.ndarray
    log_latent: np.ndarray

    @classmethod
    def of(cls, hmm, log_phi, tokens, known, log_latent=None):
        """A case from an HMM with tied or per-position parameters and one window's evidence."""
        wide = [np.asarray(x).astype(np.float64) for x in (hmm.initial, hmm.transition, hmm.emission)]
        states, length = wide[2].shape[-2], hmm.length
        if wide[1].ndim == 2:
            wide[1] = np.broadcast_to(wide[1], (length - 1, states, states))
        if wide[2].ndim == 2:
            wide[2] = np.broadcast_to(wide[2], (length, *wide[2].shape))
        g = np.zeros((length, states)) if log_latent is None else np.asarray(log_latent, np.float64)
        return cls(*wide, np.asarray(log_phi, np.float64), np.asarray(tokens), np.asarray(known), g)

    @property
    def length(self):
        return self.emission.shape[0]

    def _spread(self, array, t, axes):
        """`array` over the given axes of the T token axes followed by the T latent axes."""
        shape = [1] * (2 * self.length)
        for size, axis in zip(array.shape, axes, strict=True):
            shape[axis] = size
        return array.reshape(shape)

    def evidence(self, t):
        """[V]: φ of a masked position, an indicator of the token of a known one."""
        if self.known[t]:
            return (np.arange(self.log_phi.shape[1]) == self.tokens[t]).astype(float)
        return np.exp(self.log_phi[t])

    def locally_normalised(self):
        """Emissions with the masked rows renormalised under φ (0/0 = 0)."""
        emission = self.emission.copy()
        for t in range(self.length):
            if not self.known[t]:
                rows = emission[t] * np.exp(self.log_phi[t])
                total = rows.sum(-1, keepdims=True)
                emission[t] = np.divide(rows, total, out=np.zeros_like(rows), where=total > 0)
        return emission

    def joint(self, evidence=None, emission=None):
        """Unnormalised weight of every (x_1..x_T, z_1..z_T); `evidence` is a list of [V], default self.evidence."""
        T = self.length
        emission = self.emission if emission is None else emission
        evidence = [self.evidence(t) for t in range(T)] if evidence is None else evidence
        total = self._spread(self.initial * np.exp(self.log_latent[0]), 0, [T])
        for t in range(T):
            total = total * self._spread((emission[t] * evidence[t]).T, t, [t, T + t])
            if t:
                total = total * self._spread(self.transition[t - 1] * np.exp(self.log_latent[t]), t, [T + t - 1, T + t])
        return total

    def _all_but(self, *axes):
        return tuple(a for a in range(2 * self.length) if a not in axes)

    def log_partition(self):
        return _log(self.joint().sum())

    def prior_messages(self):
        """[T, H]: log p(z_t, evidence before t) with the latent potentials up to t."""
        rows = []
        for t in range(self.length):
            evidence = [self.evidence(s) if s < t else np.ones(self.log_phi.shape[1]) for s in range(self.length)]
            latent = np.where(np.arange(self.length)[:, None] <= t, self.log_latent, 0)
            emission = self.emission / self.emission.sum(-1, keepdims=True)
            emission = np.where((np.arange(self.length) < t)[:, None, None], self.emission, emission)
            transition = self.transition / self.transition.sum(-1, keepdims=True)
            transition = np.where((np.arange(self.length - 1) < t)[:, None, None], self.transition, transition)
            case = dataclasses.replace(self, log_latent=latent, transition=transition)
            rows.append(_log(case.joint(evidence, emission).sum(self._all_but(self.length + t))))
        return np.stack(rows)

    def posterior_marginals(self):
        joint, T = self.joint(), self.length
        return np.stack([_normalise(joint.sum(self._all_but(T + t))) for t in range(T)])

    def conditionals(self):
        """[T, V] probabilities p(x_t | evidence elsewhere) with φ_t at t, known or not."""
        rows = []
        for t in range(self.length):
            evidence = [np.exp(self.log_phi[t]) if s == t else self.evidence(s) for s in range(self.length)]
            rows.append(_normalise(self.joint(evidence).sum(self._all_but(t))))
        return np.stack(rows)

    def token_distribution(self):
        """p(x | evidence) over all token sequences, shape [V] * T."""
        return _normalise(self.joint().sum(tuple(range(self.length, 2 * self.length))))

    def local_token_distribution(self):
        """The same for the locally normalised circuit."""
        ones = [self.evidence(t) if self.known[t] else np.ones(self.log_phi.shape[1]) for t in range(self.length)]
        joint = self.joint(ones, self.locally_normalised())
        return _normalise(joint.sum(tuple(range(self.length, 2 * self.length))))

    def latent_distribution(self):
        """p(z | evidence) over all latent sequences, shape [H] * T."""
        return _normalise(self.joint().sum(tuple(range(self.length))))

    def observed(self):
        """The same case with every position known."""
        return dataclasses.replace(self, known=np.ones_like(self.known))

    def conditional_log_likelihood(self, normalization="global"):
        masked = ~self.known
        if normalization == "global":
            phi = self.log_phi[np.arange(self.length), self.tokens][masked].sum()
            joint = self.observed().log_partition() + phi
            return joint - self.log_partition() if joint > -np.inf else joint
        ones = np.ones(self.log_phi.shape[1])
        free = [self.evidence(t) if self.known[t] else ones for t in range(self.length)]
        fixed = [self.observed().evidence(t) for t in range(self.length)]
        return _log(self.joint(fixed, self.locally_normalised()).sum()) - _log(self.joint(free).sum())

    def counts(self):
        """Expected counts under p(x, z | evidence): ([H], [T-1, H, H], [T, H, V])."""
        joint, T = _normalise(self.joint()), self.length
        initial = joint.sum(self._all_but(T))
        transition = [joint.sum(self._all_but(T + t, T + t + 1)) for t in range(T - 1)]
        emission = [joint.sum(self._all_but(t, T + t)).T for t in range(T)]
        return initial, np.array(transition).reshape(self.transition.shape), np.stack(emission)


def _log(x):
    with np.errstate(divide="ignore"):
        return np.log(x)


def _normalise(x):
    total = x.sum()
    return x / total if total > 0 else np.zeros_like(x)
