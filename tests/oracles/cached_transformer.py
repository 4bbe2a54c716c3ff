"""A float64 NumPy transformer for one row whose keys and values can be frozen, and the cached decoding loop around it.

Written position by position from the papers (LLaDA, Dream, Fast-dLLM); it shares no code with the package.
"""

from __future__ import annotations

import numpy as np


def numpy_params(tree):
    """A nested dict of arrays (layout "stacked") in float64."""
    return {k: numpy_params(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}


class CachedTransformer:
    """One row at a time; `params` from `numpy_params`, `config` a BackboneConfig."""

    def __init__(self, config, params):
        self.config, self.params = config, params

    def encode(self, tokens, positions=None, kept=None):
        """({position: final hidden state}, kept): computes `positions`, reads `kept` [layer][position] for the rest."""
        c, p = self.config, self.params
        positions = range(len(tokens)) if positions is None else sorted(set(positions))
        x = {i: p["embed"]["weight"][tokens[i]] for i in positions}
        now = []
        for n in range(c.num_layers):
            w = {name: {part: a[n] for part, a in leaf.items()} for name, leaf in p["blocks"].items()}
            keys_values = {} if kept is None else dict(kept[n])
            queries = {}
            for i in positions:
                y = self._norm(x[i], w["attn_norm"])
                q, k, v = (_linear(y, w[name]) for name in "qkv")
                if c.qk_norm:
                    q, k = self._norm(q, w["q_norm"]), self._norm(k, w["k_norm"])
                queries[i] = self._turn(q.reshape(c.num_heads, -1), i)
                keys_values[i] = (self._turn(k.reshape(c.num_kv_heads, -1), i), v.reshape(c.num_kv_heads, -1))
            assert sorted(keys_values) == list(range(len(tokens)))
            for i in positions:
                x[i] = x[i] + _linear(self._attend(queries[i], keys_values), w["o"])
                y = self._norm(x[i], w["ff_norm"])
                gate = _linear(y, w["gate"])
                x[i] = x[i] + _linear(gate / (1 + np.exp(-gate)) * _linear(y, w["up"]), w["down"])
            now.append(keys_values)
        return {i: self._norm(x[i], p["final_norm"]) for i in positions}, now

    def logits(self, hidden, position):
        """[V] logits of the token at `position`."""
        source = max(position - 1, 0) if self.config.shift_logits else position
        return _linear(hidden[source], self.params["head"])

    def decode(self, prompt, gen_length, block_length, steps, cache, refresh=None, threshold=None):
        """Greedy block decoding by confidence, steps shared evenly; returns the tokens and the steps used."""
        mask, used = self.config.mask_id, 0
        tokens = [*prompt, *[mask] * gen_length]
        starts = range(len(prompt), len(tokens), block_length)
        for number, start in enumerate(starts):
            end = min(start + block_length, len(tokens))
            plan = steps // len(starts) + (number < steps % len(starts))
            if threshold is not None:
                plan = tokens[:end].count(mask)
            masks = tokens[start:end].count(mask)
            for step in range(plan):
                waiting = [i for i in range(end) if tokens[i] == mask]
                if not waiting:
                    break
                if cache == "none" or step == 0 or (refresh is not None and step % refresh == 0):
                    hidden, kept = self.encode(tokens)
                    again = [i for i in waiting if i < start] + list(range(start, len(tokens)))
                    again = [i for i in again if i < end or cache == "prefix"]
                    again += [i - 1 for i in again if self.config.shift_logits and i]
                else:
                    hidden = hidden | self.encode(tokens, again, kept)[0]
                used += 1
                scored = []
                for i in waiting:
                    logits = self.logits(hidden, i)
                    p = np.exp(logits - logits.max())
                    scored.append((p.max() / p.sum(), i, int(logits.argmax())))
                scored.sort(reverse=True)
                count = masks // plan + (step < masks % plan)
                if threshold is not None:
                    count = max(sum(confidence >= threshold for confidence, _, _ in scored), 1)
                for _, i, token in scored[:count]:
                    tokens[i] = token
        return tokens, used

    def _norm(self, x, w):
        return x / np.sqrt(np.mean(x * x) + self.config.norm_eps) * w["weight"] + w.get("bias", 0)

    def _turn(self, x, position):
        half = self.config.head_dim // 2
        angle = position * self.config.rope_theta ** (-np.arange(half) / half)
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], -1)

    def _attend(self, query, keys_values):
        mixed = []
        for head, q in enumerate(query):
            shared = head * self.config.num_kv_heads // self.config.num_heads
            keys, values = (np.stack([pair[part][shared] for pair in keys_values.values()]) for part in (0, 1))
            scores = np.exp(keys @ q / np.sqrt(len(q)))
            mixed.append(scores / scores.sum() @ values)
        return np.concatenate(mixed)


def _linear(x, w):
    return w["weight"] @ x + w.get("bias", 0)
