"""What a modulated circuit is, in float64 NumPy: a chain with matrices of its own at every position, written out."""

import numpy as np

from tests.oracles.hmm_enumeration import Case


def heads(hmm, hidden, noise):
    """(g [T, H], u [T, H], c [T, R, H]) of one window's hidden states [T, D] and masked share, zero for missing."""
    modulation = hmm.modulation
    hidden = np.asarray(hidden, np.float64)
    inputs = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6) * 128 / hidden.shape[-1]
    if modulation.noise:
        told = np.cos(np.pi * np.arange(4) * float(noise))
        inputs = np.concatenate([inputs, np.broadcast_to(told, (len(inputs), 4))], axis=-1)

    def apply(head, spec, *shape):
        return np.zeros(shape) if head is None else np.einsum(spec, inputs, np.asarray(head, np.float64))

    length, states = hmm.length, hmm.num_states
    g = apply(modulation.latent, "td,dh->th", length, states)
    u = apply(modulation.transition, "td,dh->th", length, states)
    c = apply(modulation.emission, "td,drh->trh", length, 1, states)
    return g, u, np.maximum(c, 0)


def modulated_case(hmm, log_phi, tokens, known, hidden, noise, inside=None):
    """The `Case` of a modulated circuit: π, A and E changed and normalised position by position.

    Positions that are not `inside` [T] keep the circuit's own.
    """
    g, u, c = heads(hmm, hidden, noise)
    if inside is not None:
        g, u, c = (np.where(np.reshape(inside, (-1,) + (1,) * (x.ndim - 1)), x, 0) for x in (g, u, c))
    case = Case.of(hmm, log_phi, tokens, known, g)
    initial = case.initial * np.exp(u[0])
    transition = case.transition * np.exp(u[1:, None, :])
    basis = np.zeros((1, case.emission.shape[-1]))
    if hmm.modulation.basis is not None:
        logits = np.asarray(hmm.modulation.basis, np.float64)
        basis = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    emission = case.emission + np.einsum("trh,rv->thv", c, basis)
    rows = [x / x.sum(-1, keepdims=True) for x in (initial, transition, emission)]
    return Case(*rows, case.log_phi, case.tokens, case.known, g)
