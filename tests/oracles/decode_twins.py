"""A plain Python twin of the decoding loops: one row, float64 probabilities, sorts and lists instead of masks.

It shares nothing with the package but the circuit's own draws and the noise, which it asks of `jax.random` itself.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from codd_jax import circuits

TOKEN, ORDER, LATENT, ANY_ORDER = range(4)
NAMES = {"maskgit_plus": "low_confidence", "topk_margin": "margin", "origin": "random"}


def _key(row_key, step, purpose, position):
    return jax.random.fold_in(jax.random.fold_in(row_key, step), purpose * 2**24 + int(position))


def softmax(logits):
    weight = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weight / weight.sum()


def filtered(logits, top_p, top_k):
    """Logits [V] with what top-p and top-k exclude at -inf, by sorting."""
    logits = np.array(logits, np.float64)
    order = np.argsort(-logits, kind="stable")
    keep = np.zeros(len(logits), bool)
    total = 0.0
    for token in order:
        if top_p is not None and total > top_p:
            break
        keep[token] = True
        total += softmax(logits)[token]
    if top_k is not None and top_k < len(logits):
        keep &= logits >= logits[order[top_k - 1]]
    return np.where(keep, logits, -np.inf)


def score(algorithm, logits, token):
    p = softmax(logits)
    if algorithm == "low_confidence":
        return p[token]
    if algorithm == "topprob":
        return p.max()
    if algorithm == "margin":
        best, second = sorted(p, reverse=True)[:2]
        return best - second
    return sum(x * math.log(x + 1e-10) for x in p)


def windows_over(points, length, window):
    """Greedy cover: list of (start, points)."""
    out, points = [], sorted(points)
    while points:
        group = [p for p in points if p < points[0] + window]
        points = points[len(group) :]
        spare = window - (group[-1] - group[0] + 1)
        start = group[0] - math.floor(spare / 2)
        out.append((min(max(start, 0), max(length - window, 0)), group))
    return out


def conditionals(hmm, log_phi, tokens, known, drawn):
    """log p(x_t | all else) [T, V] by matrix products; tokens drawn under local normalisation keep their weight."""
    initial, transition, emission = (np.asarray(x, np.float64) for x in (hmm.initial, hmm.transition, hmm.emission))
    phi, length = np.exp(np.asarray(log_phi, np.float64)), hmm.length
    emission = np.broadcast_to(emission, (length, *emission.shape[-2:]))
    transition = np.broadcast_to(transition, (length - 1, *transition.shape[-2:]))
    local = hmm.normalization == "local"
    soft = [emission[t] @ phi[t] for t in range(length)]
    leaf = [np.ones_like(soft[t]) if local else soft[t] for t in range(length)]
    for t in np.flatnonzero(known):
        leaf[t] = emission[t][:, tokens[t]] / (soft[t] if local and t in drawn else 1.0)
    before, after = [initial], [np.ones_like(initial)]
    for t in range(length - 1):
        before.append((before[-1] * leaf[t]) @ transition[t])
        after.append(transition[-1 - t] @ (after[-1] * leaf[-1 - t]))
    rows = []
    for t in range(length):
        weight = before[t] * after[-1 - t] / (soft[t] if local else 1.0)
        row = phi[t] * (weight @ emission[t])
        rows.append(np.log(row / row.sum()))
    return np.stack(rows)


class Twin:
    """Decodes one row with logits `table` [calls, L, V] under a `DecodeConfig`."""

    def __init__(self, table, config, family, mask_id, hmm=None, uncond=None, stop_ids=()):
        self.table, self.config, self.family, self.mask_id = table, config, family, mask_id
        self.hmm, self.uncond, self.stop_ids = hmm, uncond, stop_ids
        self.remasking = NAMES.get(config.remasking, config.remasking)
        by = config.window_remasking or config.remasking
        self.window_remasking = NAMES.get(by, by)
        self.coupling = config.coupling if hmm is not None else "none"
        self.window = hmm.length if hmm is not None else config.block_length

    def run(self, prompt, key):
        """(tokens, steps used) for one prompt."""
        config = self.config
        self.tokens = [*prompt, *[self.mask_id] * config.gen_length]
        self.begin, self.key, used = len(prompt), key, 0
        to_fill = len(self._masks(len(self.tokens)))
        size = config.block_length or config.gen_length
        if config.windows is not None and size <= self.window:
            size = config.gen_length
        size = min(size, config.gen_length)
        count = math.ceil(config.gen_length / size)
        offset = 0
        for block in range(count):
            start = self.begin + block * size
            end = min(start + size, len(self.tokens))
            thresholded = config.threshold is not None or config.threshold_factor is not None
            if thresholded:
                steps, offset = len(self._masks(end)), block * to_fill
            elif config.step_split == "floor":
                steps = config.steps // count
            else:
                steps = config.steps // count + (block < config.steps % count)
            initial = sum(t == self.mask_id for t in self.tokens[start:end])
            for i in range(steps):
                if not self._masks(end):
                    break
                self._step(offset + i, i, steps, start, end, initial)
                used += 1
            offset += steps
            if self._stopped(end):
                break
        return self.tokens, used

    def _masks(self, end):
        return [p for p in range(end) if self.tokens[p] == self.mask_id]

    def _stopped(self, end):
        for p in range(self.begin, end):
            if self.tokens[p] == self.mask_id:
                return False
            if self.tokens[p] in self.stop_ids:
                return True
        return False

    def _logits(self, step):
        logits = self.table[step].astype(np.float64)
        if self.uncond is not None:
            un = self.uncond[step].astype(np.float64)
            logits = un + (self.config.cfg_scale + 1) * (logits - un)
        return logits

    def _propose(self, logits, position, step):
        """(token, score) of one position."""
        config = self.config
        tempered = logits / config.temperature if config.temperature > 0 else logits
        allowed = filtered(tempered, config.top_p, config.top_k)
        if config.temperature > 0:
            key = _key(self.key, step, TOKEN, position)
            token = int(np.argmax(allowed + np.asarray(jax.random.gumbel(key, (len(logits),)), np.float64)))
        else:
            token = int(np.argmax(allowed))
        scored = logits if self.family == "llada" or self.remasking == "topprob" else allowed
        return token, self._rank(self.remasking, scored, token, position, step)

    def _rank(self, algorithm, logits, token, position, step):
        value = 0.0 if algorithm == "random" else score(algorithm, logits, token)
        if algorithm != "random" and not self.config.alg_temp:
            return value
        noise = float(jax.random.gumbel(_key(self.key, step, ORDER, position), ()))
        return noise if algorithm == "random" else value / self.config.alg_temp + noise

    def _count(self, masks, i, steps, initial):
        config = self.config
        schedule = config.schedule
        if schedule is None:
            whole = config.windows is not None or config.block_length in (None, config.gen_length)
            schedule = "timestep" if self.family == "dream" and whole else "even"
        if schedule == "even":
            return initial // steps + (i < initial % steps)
        if i == steps - 1:
            return len(masks)
        line = np.linspace(np.float64(1), np.float32(config.eps), steps + 1).astype(np.float32)
        return int(np.float32(len(masks)) * (1 - line[i + 1] / line[i]))

    def _choose(self, ranked, masks, i, steps, initial):
        """Positions to commit out of {position: score}."""
        config = self.config
        best = sorted(ranked, key=lambda p: (-ranked[p], p))
        if config.threshold is not None:
            return [p for n, p in enumerate(best) if n == 0 or ranked[p] >= config.threshold]
        if config.threshold_factor is not None:
            return [p for n, p in enumerate(best) if n == 0 or (n + 2) * (1 - ranked[p]) < config.threshold_factor]
        return best[: self._count(masks, i, steps, initial)]

    def _step(self, step, i, steps, start, end, initial):
        logits, masks = self._logits(step), self._masks(end)
        plain = {p: self._propose(logits[p], p, step) for p in masks}
        ranked = {p: plain[p][1] for p in masks}
        if self.config.windows == "best":
            return self._step_best(logits, plain, masks, step, i, steps, initial)
        if self.config.windows == "cover":
            if self.window_remasking != self.remasking:
                best = {p: int(np.argmax(logits[p])) for p in masks}
                ranked = {p: self._rank(self.window_remasking, logits[p], best[p], p, step) for p in masks}
            chosen = self._choose(ranked, masks, i, steps, initial)
            tokens = {p: plain[p][0] for p in chosen}
            for first, group in windows_over(chosen, len(self.tokens), self.window):
                if self._active(first):
                    tokens |= self._redraw(logits, first, group, len(group), step)
            return self._commit(tokens)
        first = start
        if self.coupling != "none":
            first = min(max(end - self.window, 0), max(len(self.tokens) - self.window, 0))
        if self.coupling == "none" or not self._active(first):
            return self._commit({p: plain[p][0] for p in self._choose(ranked, masks, i, steps, initial)})
        inside = [p for p in masks if p >= first]
        if self.coupling == "latent":
            coupled = self._latent(logits, first, step)
            both = plain | {p: self._propose(coupled[p], p, step) for p in inside}
            chosen = self._choose({p: both[p][1] for p in masks}, masks, i, steps, initial)
            return self._commit({p: both[p][0] for p in chosen})
        chosen = self._choose(ranked, masks, i, steps, initial)
        tokens = {p: plain[p][0] for p in chosen if p < first}
        return self._commit(tokens | self._redraw(logits, first, inside, len(chosen) - len(tokens), step))

    def _step_best(self, logits, plain, masks, step, i, steps, initial):
        count = self._count(masks, i, steps, initial)
        by = {p: self._rank(self.window_remasking, logits[p], int(np.argmax(logits[p])), p, step) for p in masks}
        chosen = sorted(by, key=lambda p: (-by[p], p))[:count]
        best, start = 0, 0
        for anchor in sorted(chosen):
            at = min(max(anchor - self.window // 2, 0), max(len(self.tokens) - self.window, 0))
            covered = sum(at <= p < at + self.window for p in chosen)
            if covered > best:
                best, start = covered, at
        inside = [p for p in masks if start <= p < start + self.window]
        forced = [p for p in chosen if p not in inside]
        ranked, tokens = {p: plain[p][1] for p in masks}, {p: plain[p][0] for p in masks}
        free = [p for p in masks if p not in forced]
        if self.coupling != "none" and best > 1 and self._active(start):
            if self.coupling == "any_order":
                drawn = self._redraw(logits, start, inside, count - len(forced), step)
                return self._commit({p: tokens[p] for p in forced} | drawn)
            coupled = self._latent(logits, start, step)
            for p in inside:
                tokens[p], ranked[p] = self._propose(coupled[p], p, step)
            free = inside
        rest = sorted(free, key=lambda p: (-ranked[p], p))[: count - len(forced)]
        return self._commit({p: tokens[p] for p in [*forced, *rest]})

    def _commit(self, tokens):
        for position, token in tokens.items():
            self.tokens[position] = token

    def _active(self, first):
        here = self.tokens[first : first + self.window]
        share = np.float32(sum(t == self.mask_id for t in here)) / np.float32(len(here))
        if self.config.pc_frac is None:
            return True
        bound = np.float32(self.config.pc_frac)
        return bool(share > bound if self.config.reverse_frac else share < bound)

    def _evidence(self, logits, first):
        tau = self.config.pc_temperature
        sharp = tau if 0 < tau < 1 and self.config.pc_temperature_on == "potentials" else 1.0
        here = np.arange(first, first + self.window)
        real = here < len(self.tokens)
        log_phi = np.zeros((self.window, logits.shape[-1]), np.float32)
        tokens = np.zeros(self.window, np.int32)
        for n in np.flatnonzero(real):
            log_phi[n] = np.log(softmax(logits[here[n]] / sharp))
            tokens[n] = self.tokens[here[n]]
        return log_phi, tokens, real & (tokens != self.mask_id)

    def _latent(self, logits, first, step):
        """{position: coupled logits} of the window."""
        log_phi, tokens, known = self._evidence(logits, first)
        path = np.asarray(
            circuits.sample_latents(self.hmm, log_phi, tokens, known, _key(self.key, step, LATENT, first))
        )
        emission = np.asarray(self.hmm.emission, np.float64)
        rows = emission[path] if emission.ndim == 2 else emission[np.arange(self.window), path]
        with np.errstate(divide="ignore"):
            coupled = log_phi + np.log(rows)
        tau = self.config.pc_temperature
        if 0 < tau < 1 and self.config.pc_temperature_on == "coupled":
            coupled = coupled / tau
        return {first + n: coupled[n] for n in range(self.window)}

    def _redraw(self, logits, first, positions, count, step):
        """{position: token} of `count` of `positions` drawn from the circuit."""
        if self.coupling == "latent":
            coupled = self._latent(logits, first, step)
            return {p: self._propose(coupled[p], p, step)[0] for p in positions}
        key, config = _key(self.key, step, ANY_ORDER, first), self.config
        log_phi, tokens, known = self._evidence(logits, first)
        drawn, left = {}, sorted(positions)
        for _ in range(count):
            rows = conditionals(self.hmm, log_phi, tokens, known, [p - first for p in drawn])
            name = "low_confidence" if self.remasking == "topprob" else self.remasking
            scores = {p: score(name, rows[p - first], int(np.argmax(rows[p - first]))) for p in left}
            position = max(left, key=lambda p: (scores[p], -p))
            row = rows[position - first]
            if config.pc_temperature_on == "coupled" and 0 < config.pc_temperature < 1:
                row = row / config.pc_temperature
            noise = jax.random.gumbel(jax.random.fold_in(key, position - first), row.shape)
            warm = config.temperature > 0
            allowed = filtered(row / config.temperature if warm else row, config.top_p, config.top_k)
            token = int(np.argmax(allowed + (np.asarray(noise, np.float64) if warm else 0)))
            drawn[position] = token
            left.remove(position)
            tokens[position - first], known[position - first] = token, True
        return drawn
