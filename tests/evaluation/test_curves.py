"""The likelihood curves against a plain loop over tokens and enumeration, their intervals, and continued runs."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax.backbones import PRESETS, Transformer
from codd_jax.circuits import HMM
from codd_jax.evaluation import curves
from codd_jax.evaluation.curves import CurveSettings, draw_windows, measure_curves
from codd_jax.evaluation.curves_report import curves_table, plot_curves, summarise_curves
from codd_jax.training.dataset import Example
from codd_jax.training.rows import lay_out

WINDOW, VOCAB = 3, 8
SETTINGS = CurveSettings(ratios=(0.34, 1.0), windows=4, sequential_windows=2, orders=2, batch=3)


def small(family: str) -> Transformer:
    numbers = {"vocab_size": VOCAB, "width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8}
    ids = {"mask_id": 7, "eos_id": 6, "pad_id": 6, "bos_id": None, "ffn_width": 16}
    config = dataclasses.replace(PRESETS[f"{family}-1m"], **numbers, **ids)
    return Transformer(config, layout="unrolled", rngs=nnx.Rngs(3))


@pytest.fixture(scope="module", params=["llada", "dream"])
def backbone(request):
    return small(request.param)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    examples = [Example(tuple(rng.integers(0, 6, 3 + n)), tuple(rng.integers(0, 6, 4))) for n in range(3)]
    return lay_out(examples, WINDOW, 6, 6, bucket=4)


@pytest.fixture(scope="module")
def hmm():
    return HMM.random(jax.random.key(0), WINDOW, 2, VOCAB)


def log_probs(backbone, tokens):
    return np.asarray(jax.nn.log_softmax(backbone(jnp.asarray(tokens[None]))[0]), np.float64)


def masked_row(rows, row, start, hidden):
    """A row's real tokens with `hidden` places of the window, and everything behind it, masked."""
    tokens = np.asarray(rows.tokens[row])[: int(rows.lengths[row])].copy()
    tokens[[start + place for place in hidden]] = 7
    tokens[start + WINDOW :] = 7
    return tokens


def test_every_likelihood_is_that_of_a_plain_loop(backbone, rows, hmm, tmp_path):
    lines = measure_curves(backbone, {"hmm": hmm}, [rows], SETTINGS, tmp_path, progress=False)
    windows = draw_windows([rows], SETTINGS, aligned=not backbone.config.shift_logits)
    assert len(lines) == 8
    pi, a, e = (np.asarray(x, np.float64) for x in (hmm.initial, hmm.transition, hmm.emission))
    for line in lines:
        _, row, start = windows[line["window"]]
        order = np.random.default_rng((0, line["window"], line["order"])).permutation(WINDOW)
        clean = np.asarray(rows.tokens[row])[start : start + WINDOW]
        for index, count in enumerate((1, 3)):
            hidden = order[WINDOW - count :]
            phi = log_probs(backbone, masked_row(rows, row, start, hidden))[start : start + WINDOW]
            np.testing.assert_allclose(line["factorised"][index], sum(phi[p, clean[p]] for p in hidden), atol=1e-4)
            top, bottom = 0.0, 0.0
            for filling in itertools.product(range(VOCAB), repeat=count):
                x = clean.copy()
                x[hidden] = filling
                joint = pi * e[:, x[0]]
                for token in x[1:]:
                    joint = (joint @ a) * e[:, token]
                weight = joint.sum() * np.exp(sum(phi[p, x[p]] for p in hidden))
                bottom += weight
                top = weight if (x == clean).all() else top
            np.testing.assert_allclose(line["coupled"]["hmm"][index], np.log(top / bottom), atol=1e-4)
            if line["window"] < 2:
                chain = 0.0
                for left in range(count, 0, -1):
                    place = order[WINDOW - left]
                    phi = log_probs(backbone, masked_row(rows, row, start, order[WINDOW - left :]))
                    chain += phi[start + place, clean[place]]
                np.testing.assert_allclose(line["sequential"][index], chain, atol=1e-4)
            else:
                assert line["sequential"] is None


def test_a_stopped_run_continues_to_the_same_lines(rows, hmm, tmp_path, monkeypatch):
    backbone = small("llada")
    whole = measure_curves(backbone, {"hmm": hmm}, [rows], SETTINGS, tmp_path / "whole", progress=False)
    calls = []
    run_batch = curves._run_batch

    def stop(*arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return run_batch(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(curves, "_run_batch", stop)
        measure_curves(backbone, {"hmm": hmm}, [rows], SETTINGS, tmp_path / "cut", progress=False)
    file = tmp_path / "cut" / "likelihoods.jsonl"
    file.write_bytes(file.read_bytes() + b'{"window": 1, "ord')  # torn by the kill
    measure_curves(backbone, {"hmm": hmm}, [rows], SETTINGS, tmp_path / "cut", progress=False)
    again = [json.loads(line) for line in file.read_text().splitlines()]
    place = lambda line: (line["window"], line["order"])  # noqa: E731
    assert sorted(map(place, again)) == sorted(map(place, whole))
    for one, other in zip(sorted(again, key=place), sorted(whole, key=place), strict=True):
        np.testing.assert_allclose(one["factorised"], other["factorised"], atol=1e-5)
    with pytest.raises(ValueError, match="orders: 2 there, 3 now"):
        other = CurveSettings(**{**SETTINGS.__dict__, "orders": 3})
        measure_curves(backbone, {"hmm": hmm}, [rows], other, tmp_path / "cut", progress=False)


def test_a_circuit_of_another_window_is_refused(rows, tmp_path):
    circuit = HMM.random(jax.random.key(0), 4, 2, VOCAB)
    with pytest.raises(ValueError, match="windows of 4 tokens, the rows are laid out for 3"):
        measure_curves(small("llada"), {"other": circuit}, [rows], SETTINGS, tmp_path, progress=False)


def test_means_gaps_and_bounds_by_hand(tmp_path):
    def line(window, order, sequential, factorised, coupled):
        values = {"sequential": sequential, "factorised": factorised, "coupled": {"c": coupled}}
        return {"window": window, "order": order, "masked": [1, 2], **values}

    lines = [
        line(0, 0, [-1.0, -2.0], [-1.0, -6.0], [-1.0, -3.0]),
        line(0, 1, [-1.0, -2.0], [-1.0, -6.0], [-1.0, -5.0]),
        line(1, 0, [-1.0, -4.0], [-1.0, -8.0], [-1.5, -6.0]),
        line(1, 1, [-1.0, -4.0], [-1.0, -8.0], [-1.5, -6.0]),
    ]
    result = summarise_curves(lines, (0.5, 1.0))
    assert result["methods"]["factorised"]["nll"] == [1.0, 3.5]
    assert result["methods"]["c"]["nll"] == [1.25, 2.5]
    assert result["gap_closed"]["c"] == [None, pytest.approx((3.5 - 2.5) / (3.5 - 1.5))]
    difference = result["difference"]["c"]
    assert difference["mean"] == [0.25, -1.0] and difference["limit"] == [0.005, pytest.approx(0.0175)]
    assert difference["high"][0] == pytest.approx(0.25 + 1.96 * 0.25) and difference["within"] == [False, True]
    assert "50.0%" in curves_table(result) and "+0.2500" in curves_table(result)
    plot_curves(result, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_sequential_curve_is_carried_over_to_all_windows():
    def line(window, sequential, factorised):
        coupled = {"c": [factorised]}
        sequential = None if sequential is None else [sequential]
        return {"window": window, "order": 0, "masked": [1], "sequential": sequential} | {
            "factorised": [factorised],
            "coupled": coupled,
        }

    lines = [line(0, -1.0, -2.0), line(1, -3.0, -4.5), line(2, None, -9.0), line(3, None, -9.5)]
    result = summarise_curves(lines, (1.0,))
    assert result["windows"] == 4 and result["sequential_windows"] == 2
    curve = result["methods"]["sequential"]
    assert curve["nll"] == [pytest.approx((2 + 4.5 + 9 + 9.5) / 4 - (1 + 1.5) / 2)]
    spread = np.hypot(1.96 * np.std([2, 4.5, 9, 9.5], ddof=1) / 2, 1.96 * np.std([1, 1.5], ddof=1) / np.sqrt(2))
    assert curve["high"] == [pytest.approx(curve["nll"][0] + spread)]


@pytest.mark.parametrize("bad", [{"ratios": ()}, {"ratios": (0.0,)}, {"ratios": (1.5,)}, {"orders": 0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        CurveSettings(**bad)
