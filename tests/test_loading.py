"""What is settled before weights are read: defaults, dtypes, tokenizers, circuits left out; and what is published."""

import dataclasses
import json
import pathlib
import shutil

import huggingface_hub
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from codd_jax import HMM, CoDD, DecodeConfig
from codd_jax.io import checkpoint
from codd_jax.io.circuit import save_circuit
from codd_jax.loading import default_config
from codd_jax.sources import cite, trace


@pytest.fixture(scope="module")
def original(fixtures_dir, tmp_path_factory):
    """A backbone with a circuit of 16 tokens beside it; not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "unified"
    shutil.copytree(fixtures_dir / "llada_tiny", folder)
    rows = np.random.default_rng(0).dirichlet(np.ones(384), 4).astype(np.float32)
    uniform = np.full((5, 4), 0.25, np.float32)
    save_circuit(folder, HMM(initial=uniform[0], transition=uniform[1:], emission=rows, length=16))
    return folder


@pytest.fixture
def unified(original, tmp_path):
    return pathlib.Path(shutil.copytree(original, tmp_path / "unified"))


@pytest.fixture(scope="module")
def model(original):
    return CoDD.from_pretrained(original, dtype="float32", progress=False)


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(checkpoint.OpenBackbone, "load", lambda *_, **__: pytest.fail("weights were read"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_steps": 0},
            r"codd_config\.json cannot be used: steps is 0.*Correct them in the file, or pass defaults=",
        ),
        ({"temperature": "0.0"}, r"codd_config\.json cannot be used: temperature is '0\.0'"),
        ({"block_length": 32}, r"block_length is 32 but the circuit covers windows of 16"),
    ],
)
def test_published_defaults_that_cannot_be_used_name_their_file(unified, no_weights, settings, message):
    (unified / "codd_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        CoDD.from_pretrained(unified, progress=False)


@pytest.mark.parametrize(
    ("decoding", "message"),
    [({"step": 3}, "step is no setting of DecodeConfig"), ({"steps": -1}, "steps is -1"), (3, "cannot be used")],
)
def test_stored_defaults_that_cannot_be_used_name_their_file(tmp_path, no_weights, decoding, message):
    about = {"format": "codd_jax", "version": 1, "kind": "bundle", "decoding": decoding}
    (tmp_path / "codd.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=rf"codd\.json cannot be used.*{message}|codd\.json {message}"):
        CoDD.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["float99", "int8", 7])
def test_dtypes_that_hold_no_weights_are_refused(unified, no_weights, dtype):
    with pytest.raises(ValueError, match="dtype must be a floating type"):
        CoDD.from_pretrained(unified, dtype=dtype)


def test_a_short_circuit_shortens_the_blocks_of_the_default(model):
    assert model.defaults == dataclasses.replace(DecodeConfig(), block_length=16)
    assert default_config(1).steps == 512


def test_the_circuit_beside_a_backbone_can_be_left_out_and_defaults_be_replaced(unified):
    (unified / "codd_config.json").write_text('{"num_steps": 0}')
    given = DecodeConfig(block_length=8)
    model = CoDD.from_pretrained(unified, False, dtype="float32", progress=False, defaults=given)
    assert model.hmm is None and model.defaults == given


def test_a_model_without_a_tokenizer_is_saved_and_loaded(model, tmp_path):
    defaults = DecodeConfig(steps=np.int64(64), block_length=np.int32(8), temperature=np.float32(0.5))
    CoDD(model.backbone, model.hmm, defaults=defaults).save_pretrained(tmp_path / "saved")
    with pytest.warns(UserWarning, match="holds no tokenizer"):
        again = CoDD.from_pretrained(tmp_path / "saved", dtype="float32", mesh="model:1", progress=False)
    assert again.tokenizer is None and again.defaults == defaults
    np.testing.assert_array_equal(again.hmm.emission, model.hmm.emission)
    # Split over the vocabulary, as the plan of experiments/fit.py counts on.
    assert again.hmm.emission.sharding.spec == PartitionSpec(None, "model")


def test_defaults_that_could_not_be_loaded_are_not_saved(model, tmp_path):
    with pytest.raises(ValueError, match="block_length is 32 but the circuit covers windows of 16"):
        CoDD(model.backbone, model.hmm, defaults=DecodeConfig(steps=512)).save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_sources_keep_hub_ids_and_no_path(tmp_path):
    assert cite("GSAI-ML/LLaDA-8B-Instruct") == {"hub": "GSAI-ML/LLaDA-8B-Instruct"}
    for local in (tmp_path, tmp_path / "gone", str(tmp_path) + "/"):
        assert cite(local) == {"folder": local.name if hasattr(local, "name") else tmp_path.name}
    about = {"format": "codd_jax", "version": 1, "kind": "backbone", "source": "GSAI-ML/LLaDA-8B", "adapter": "/home/a"}
    (tmp_path / "codd.json").write_text(json.dumps(about))
    assert trace(tmp_path, tmp_path) == {"backbone": {"hub": "GSAI-ML/LLaDA-8B"}}
    (tmp_path / "codd.json").write_text(json.dumps(about | {"source": str(tmp_path)}))
    assert trace(tmp_path, tmp_path, "a/pc", "./b") == {
        "backbone": {"folder": tmp_path.name},
        "circuit": {"hub": "a/pc"},
        "adapter": {"folder": "b"},
    }
    saved = about | {"kind": "bundle", "sources": {"backbone": {"hub": "a/b"}, "circuit": {"hub": "a/c"}}}
    (tmp_path / "codd.json").write_text(json.dumps(saved))
    assert trace(tmp_path, tmp_path) == {"backbone": {"hub": "a/b"}, "circuit": {"hub": "a/c"}}
    assert trace(tmp_path, tmp_path, False) == {"backbone": {"hub": "a/b"}}


class Hub:
    """Keeps the text of what would be uploaded."""

    def __init__(self, refuse=False):
        self.refuse, self.sent = refuse, {}

    def create_repo(self, *_, **__):
        if self.refuse:
            raise ConnectionError("no route")

    def upload_folder(self, repo_id, folder_path, commit_message):
        paths = [path for path in folder_path.rglob("*") if path.suffix in (".json", ".md")]
        self.sent = {path.name: path.read_text() for path in paths}


def test_nothing_published_holds_a_local_path(model, original, monkeypatch):
    sources = {**model.sources, "circuit": "someone/pc"}
    model = CoDD(model.backbone, model.hmm, model.tokenizer, sources=sources)
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: hub)
    model.push_to_hub("someone/model")
    assert not [name for name, text in hub.sent.items() if str(original.parent) in text]
    card = hub.sent["README.md"]
    assert "base_model:\n- someone/pc\n---" in card and "| backbone from | a local folder, `unified` |" in card


def test_a_refused_repository_costs_no_saving(model, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: Hub(refuse=True))
    monkeypatch.setattr("codd_jax.saving.save", lambda *_, **__: pytest.fail("saved first"))
    with pytest.raises(ConnectionError, match="someone/model"):
        model.push_to_hub("someone/model")
