"""Whole decodes with the tiny backbones against the published loops, canvas by canvas."""

import numpy as np
import pytest

from codd_jax import decoding
from tests.oracles import goldens, tables

LLADA = {"llada_tiny": 22, "llada_tiny_gqa": 4, "llada_tiny_opts": 5}


def run(tiny, folder, name, case, arrays):
    denoiser, params, config = tiny(name)
    decode_config = goldens.decode_config(case)
    probs = arrays.get(f"{case['name']}__pc_probs")
    hmm = None if probs is None else tables.one_state_circuit(probs)
    family = "llada" if case["loop"] == "llada" else "dream"
    strategy, numbers = decode_config.split(family=family, mask_id=case["mask_id"], circuit_length=hmm and hmm.length)
    prompt, mask = arrays[f"{case['name']}__prompt"], arrays.get(f"{case['name']}__attention_mask")
    rows = tables.left_padded_rows(prompt, mask)
    canvas = decoding.make_canvas(rows, decode_config.gen_length, case["mask_id"], config.pad_id, bucket=48)
    seen, last = tables.trajectory(denoiser, params, canvas, strategy, numbers, hmm)
    golden = arrays[f"{case['name']}__trajectory"]
    golden = golden[:, None] if golden.ndim == 2 else golden
    for row, ids in enumerate(rows):
        skipped = prompt.shape[1] - len(ids)
        here = seen[:, row, : golden.shape[2] - skipped]
        np.testing.assert_array_equal(here, golden[:, row, skipped:], err_msg=f"{name}/{case['name']} row {row}")
    assert not np.asarray(last.pc_failures).any()


def _cases(fixtures_dir, name):
    cases, arrays = goldens.load(fixtures_dir / name)
    return cases, arrays


@pytest.mark.parametrize(("name", "index"), [(name, i) for name, count in LLADA.items() for i in range(count)])
def test_llada(tiny, fixtures_dir, name, index):
    cases, arrays = _cases(fixtures_dir, name)
    assert len(cases) == LLADA[name]
    run(tiny, fixtures_dir, name, cases[index], arrays)


@pytest.mark.parametrize("index", range(36))
def test_dream(tiny, fixtures_dir, index):
    cases, arrays = _cases(fixtures_dir, "dream_tiny")
    assert len(cases) == 36, len(cases)
    run(tiny, fixtures_dir, "dream_tiny", cases[index], arrays)
