"""Every form a circuit may have on disk: sizes known without its numbers, the numbers kept, bad ones refused."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from codd_jax.circuits import HMM
from codd_jax.io import circuit, jpc
from codd_jax.io.arrays import save_arrays
from codd_jax.io.workspace import write_marker


@pytest.fixture(scope="module")
def hmm():
    return HMM.random(jax.random.key(0), 4, 6, 9, tied=False, normalization="local")


@pytest.fixture(params=["jpc", "model.jpc", "safetensors", "orbax"])
def stored(request, tmp_path, hmm):
    """The circuit in each form, and the name of the form."""
    if request.param == "safetensors":
        circuit.save_circuit(tmp_path, hmm, {"mask_id": 8})
        return tmp_path, "safetensors"
    path = tmp_path / "model.jpc"
    jpc.write(path, hmm)
    if request.param != "orbax":
        return (path if request.param == "jpc" else tmp_path), "jpc"
    folder = tmp_path / "converted"
    folder.mkdir()
    circuit.write_circuit(folder, path, about={"mask_id": 8}, progress=False)
    return folder, "orbax"


def test_describe_and_load(stored, hmm, monkeypatch):
    source, form = stored
    info = circuit.describe(source)
    mask_id = None if form == "jpc" else 8
    assert info == circuit.CircuitInfo(4, 6, 9, "local", mask_id, form)
    assert circuit.CircuitInfo.of(hmm) == circuit.CircuitInfo(4, 6, 9, "local")
    loaded = circuit.load_circuit(source)
    for name in circuit.NAMES:
        np.testing.assert_array_equal(np.asarray(getattr(loaded, name)), np.asarray(getattr(hmm, name)))
    assert (loaded.length, loaded.normalization) == (4, "local")
    assert circuit.load_circuit(source, dtype="bfloat16").emission.dtype == ml_dtypes.bfloat16


def test_describe_reads_no_numbers(stored, monkeypatch):
    source, _ = stored

    def refuse(*_, **__):
        raise AssertionError("parameters were read")

    monkeypatch.setattr("codd_jax.io.jpc_chain.Chain._dense", refuse)
    monkeypatch.setattr("codd_jax.io.circuit.map_tensor", refuse)
    monkeypatch.setattr("codd_jax.io.arrays.ArrayStore._load", refuse)
    monkeypatch.setattr(jax, "device_put", refuse)
    assert circuit.describe(source).vocab_size == 9


def test_rows_that_are_off_are_renormalised_when_loaded_only(tmp_path, hmm):
    skewed = np.array(hmm.emission)
    skewed[1, 2] *= 1.5
    source = tmp_path / "skewed.jpc"
    jpc.write(source, hmm.replace(emission=skewed))
    np.testing.assert_array_equal(np.asarray(jpc.read(source).emission), skewed)
    with pytest.warns(UserWarning, match="renormalised"):
        loaded = circuit.load_circuit(source)
    np.testing.assert_allclose(np.asarray(loaded.emission).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("value,reason", [(np.nan, "NaN"), (-0.1, "negative entry"), (np.inf, "infinite")])
def test_conversion_refuses_numbers_that_are_no_probabilities(tmp_path, hmm, value, reason):
    broken = np.array(hmm.emission)
    broken[0, 0, 0] = value
    jpc.write(tmp_path / "broken.jpc", hmm.replace(emission=broken))
    with pytest.raises(ValueError, match=reason):
        circuit.write_circuit(tmp_path, tmp_path / "broken.jpc", progress=False)


def test_files_that_are_not_of_one_circuit(tmp_path, hmm):
    circuit.save_circuit(tmp_path, hmm)
    about = json.loads((tmp_path / "circuit.json").read_text())
    (tmp_path / "circuit.json").write_text(json.dumps({**about, "num_states": 7}))
    with pytest.raises(ValueError, match="7 states"):
        circuit.describe(tmp_path)
    (tmp_path / "circuit.json").write_text("{}")
    with pytest.raises(ValueError, match="length"):
        circuit.describe(tmp_path)


def test_a_converted_circuit_without_one_of_its_arrays(tmp_path, hmm):
    facts = {"length": 4, "num_states": 6, "vocab_size": 9}
    for kept in (("transition", "emission"), ("initial",)):
        folder = tmp_path / kept[0]
        folder.mkdir()
        tables = {name: np.asarray(getattr(hmm, name)) for name in kept}
        specs = {name: (table.dtype, table.shape) for name, table in tables.items()}
        save_arrays(folder / "params", specs, tables.__getitem__, progress=False)
        write_marker(folder, "circuit", **facts)
        lacking = ", ".join(sorted(set(circuit.NAMES) - set(kept)))
        with pytest.raises(ValueError, match=f"lacks {lacking}; a circuit needs"):
            circuit.describe(folder)


def test_the_settings_beside_a_published_circuit_are_fetched(tmp_path, hmm, monkeypatch):
    jpc.write(tmp_path / "model.jpc", hmm)
    fetched = []
    monkeypatch.setattr("codd_jax.io.hub.resolve", lambda source, **o: fetched.extend(o["allow_patterns"]) or tmp_path)
    circuit.describe("somebody/circuit")
    assert "codd_config.json" in fetched


def test_a_folder_without_a_circuit(tmp_path):
    with pytest.raises(ValueError, match="holds no circuit"):
        circuit.load_circuit(tmp_path)
    with pytest.raises(FileNotFoundError):
        circuit.load_circuit(tmp_path / "absent.jpc")


def test_the_mask_id_of_a_unified_folder(tmp_path, hmm):
    jpc.write(tmp_path / "pc_model.jpc", hmm)
    (tmp_path / "codd_config.json").write_text(json.dumps({"mask_id": 7}))
    assert circuit.describe(tmp_path).mask_id == 7
