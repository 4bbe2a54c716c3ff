"""Circuits that follow the context on disk: the heads kept bit for bit, other backbones refused, no .jpc."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest

from codd_jax.backbones import PRESETS
from codd_jax.circuits import HMM, Modulation
from codd_jax.io import circuit, jpc
from codd_jax.io.modulation import ModulationInfo
from convert.__main__ import main

WIDTH, STATES, VOCAB, RANK = 8, 6, 9, 2


@pytest.fixture(scope="module")
def hmm():
    basis = np.zeros((RANK, VOCAB), np.float32)
    empty = Modulation.zeros(("latent", "emission"), WIDTH, STATES, basis=basis, noise=True)
    rng = np.random.default_rng(0)
    heads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), empty)
    return HMM.random(jax.random.key(0), 4, STATES, VOCAB).with_modulation(heads)


@pytest.fixture(params=["safetensors", "orbax"])
def stored(request, tmp_path, hmm):
    circuit.save_circuit(tmp_path / "plain", hmm, {"mask_id": 8})
    if request.param == "safetensors":
        return tmp_path / "plain"
    assert main([str(tmp_path / "plain"), str(tmp_path / "converted"), "--quiet"]) == 0
    return tmp_path / "converted"


def test_heads_come_back_bit_for_bit(stored, hmm):
    info = circuit.describe(stored)
    assert info.modulation == ModulationInfo(("latent", "emission"), WIDTH, True, RANK)
    assert info.modulation == circuit.CircuitInfo.of(hmm).modulation
    loaded = circuit.load_circuit(stored, dtype="bfloat16")
    assert loaded.emission.dtype == ml_dtypes.bfloat16
    assert jax.tree.structure(loaded) == jax.tree.structure(hmm)
    jax.tree.map(np.testing.assert_array_equal, loaded.modulation, hmm.modulation)


def test_another_backbone_is_refused_by_the_description_alone(stored):
    config = dataclasses.replace(PRESETS["llada-1m"], vocab_size=VOCAB, mask_id=8)
    circuit.describe(stored).check_fit(dataclasses.replace(config, width=WIDTH))
    with pytest.raises(ValueError, match=f"width {WIDTH} and the llada backbone's have {config.width}"):
        circuit.describe(stored).check_fit(config)


def test_a_jpc_file_cannot_hold_heads(stored, hmm, tmp_path, capsys):
    out = tmp_path / "model.jpc"
    with pytest.raises(ValueError, match=r"follows the context \(latent, emission\)"):
        jpc.write(out, hmm)
    assert main([str(stored), str(out), "--to-jpc"]) == 2
    assert "--drop-modulation" in capsys.readouterr().err and not out.exists()
    assert main([str(stored), str(out), "--to-jpc", "--drop-modulation"]) == 0
    static = jpc.read(out)
    assert static.modulation is None
    np.testing.assert_array_equal(static.emission, hmm.emission)
    assert main([str(stored), str(tmp_path / "folder"), "--drop-modulation"]) == 2


def test_heads_that_do_not_belong_to_the_circuit(tmp_path, hmm):
    circuit.save_circuit(tmp_path, hmm)
    about = json.loads((tmp_path / "circuit.json").read_text())

    def say(**modulation):
        facts = {**about, "modulation": {**about["modulation"], **modulation}}
        (tmp_path / "circuit.json").write_text(json.dumps(facts))
        return circuit.describe(tmp_path)

    with pytest.raises(ValueError, match=r"modulation.latent \(12, 6\).*width 16"):
        say(width=16)
    with pytest.raises(ValueError, match="modulation is bigram"):
        say(kinds=["bigram"])
    with pytest.raises(ValueError, match=r"lacks modulation\.transition"):
        say(kinds=["latent", "transition"])
    (tmp_path / "circuit.json").write_text(json.dumps({**about, "modulation": []}))
    with pytest.raises(ValueError, match="modulation is not readable"):
        circuit.describe(tmp_path)


def test_conversion_refuses_heads_that_are_not_finite(tmp_path, hmm):
    broken = np.array(hmm.modulation.latent)
    broken[0, 0] = np.nan
    circuit.save_circuit(tmp_path / "plain", hmm.replace(modulation=hmm.modulation.replace(latent=broken)))
    with pytest.raises(ValueError, match=r"modulation\.latent holds NaN"):
        circuit.write_circuit(tmp_path / "out", tmp_path / "plain", progress=False)


def test_a_static_circuit_says_nothing_of_modulation(tmp_path, hmm):
    circuit.save_circuit(tmp_path, hmm.with_modulation(None))
    assert "modulation" not in json.loads((tmp_path / "circuit.json").read_text())
    assert circuit.load_circuit(tmp_path).modulation is None
