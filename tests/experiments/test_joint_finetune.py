"""The joint fine-tuning script, end to end: flags, files, the demo's arms, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax import CoDD
from codd_jax.backbones import Transformer
from codd_jax.circuits import HMM
from codd_jax.io.circuit import save_circuit
from codd_jax.io.safetensors import save_huggingface
from codd_jax.tokenizer import load_tokenizer
from experiments import joint_finetune
from experiments.demo_task import joint
from experiments.demo_task.problems import sample_problems
from experiments.demo_task.tokenizer import save_tokenizer
from experiments.demo_task.train import backbone_config


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A narrow random backbone with the demo's tokenizer and a small circuit, as a folder."""
    folder = tmp_path_factory.mktemp("bundle")
    save_tokenizer(folder)
    narrow = {"width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "ffn_width": 24}
    config = dataclasses.replace(backbone_config(load_tokenizer(folder)), **narrow)
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(Transformer.abstract(config))
    state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * x.shape[-1] ** -0.5, x.dtype), state)
    save_huggingface(nnx.merge(graphdef, state), config, folder)
    save_circuit(folder, HMM.random(jax.random.key(0), 32, 3, config.vocab_size), {"mask_id": config.mask_id})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions and answers as a JSONL file."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    problems = [problem for problem, _ in zip(sample_problems(0, False), range(12), strict=False)]
    path.write_text("".join(json.dumps({"question": p.question, "answer": p.solution(0)}) + "\n" for p in problems))
    return path


def words(bundle, data, out, /, **flags):
    flags = {"llada_ckpt": bundle, "pc_ckpt": bundle, "data": data, "output_dir": out, "steps": 2} | flags
    flags = {"batch_size": 4, "held_out": 3, "dtype": "float32", "rank": 2, "targets": "q", "warmup": 1} | flags
    return [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]


def test_lora_from_files_to_files(bundle, data, tmp_path, capsys):
    command = [*words(bundle, data, tmp_path, layout="transformers"), "--no_remat"]
    joint_finetune.main(command)
    said = capsys.readouterr().out
    assert "step 0:" in said and "step 2:" in said and f"adapter: {tmp_path / 'adapter'}" in said
    history = json.loads((tmp_path / "history.json").read_text())
    assert [point["step"] for point in history["history"]] == [0, 2] and (tmp_path / "history.png").is_file()
    assert history["trained_weights"]["backbone"] == 2 * (16 + 16)
    tuned = CoDD.from_pretrained(tmp_path / "model", dtype="float32", progress=False)
    assert tuned.tokenizer is not None and tuned.hmm.length == 32
    start = CoDD.from_pretrained(bundle, circuit=bundle, dtype="float32", progress=False)
    assert np.abs(tuned.hmm.emission - start.hmm.emission).max() > 0
    adapted = CoDD.from_pretrained(bundle, adapter=tmp_path / "adapter", dtype="float32", progress=False)
    merged, loaded = (nnx.to_pure_dict(nnx.state(model.backbone)) for model in (tuned, adapted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), merged, loaded)
    # The same command again has nothing left to do; another rate is another run.
    joint_finetune.main(command)
    with pytest.raises(SystemExit):
        joint_finetune.main([*command, "--backbone_rate", "0.5"])
    assert "backbone_rate: 0.0001 before, 0.5 now" in capsys.readouterr().err


def test_the_demo_runs_its_arms_from_one_start(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(joint, "BUNDLE", bundle)
    assert list(joint.ARMS) == ["circuit", "backbone", "joint"]
    monkeypatch.delitem(joint.ARMS, "backbone")  # the others show what there is to see
    options = {"steps": 2, "batch_size": 4, "problems": 2, "decode_steps": (1,), "progress": False}
    result = joint.run_arms(tmp_path, **options)
    arms = result["arms"]
    assert list(arms) == ["start", "circuit", "joint"]
    assert arms["circuit"]["backbone"] == arms["start"]["backbone"] != arms["joint"]["backbone"]
    assert len({arm["coupled"] for arm in arms.values()}) == 3
    assert json.loads((tmp_path / "table.json").read_text())["arms"] == arms
    assert (tmp_path / "plot.png").is_file() and "| both |" in (tmp_path / "table.md").read_text()


def test_the_new_phrasings_are_words_that_the_demo_knows(bundle):
    tokenizer = load_tokenizer(bundle)
    for problem, _ in zip(sample_problems(0, False), range(50), strict=False):
        for text in joint.solutions(problem):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert len(ids) < 32 and tokenizer.decode(ids) == text
            assert all(len(tokenizer.decode([token]).strip()) > 1 or token < 1000 for token in ids)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"pc_ckpt": None}, "the coupled objective needs a circuit"),
        ({"dream_ckpt": "x"}, "2 backbones are given"),
        ({"data": None}, "--data is missing"),
        ({"data": "/nowhere/x.jsonl"}, "no data at"),
        ({"targets": "z"}, "match none of"),
        ({"train": "some"}, "invalid choice"),
        ({"accumulate": 3}, "cannot be worked through in 3 equal parts"),
        ({"held_out": 12}, "leaves none to learn from"),
        ({"max_length": 10}, "raise --max_length"),
        ({"weighting": "t"}, "weighting is 't'"),
        ({"mesh": "data:64"}, "needs 64 devices"),
    ],
)
def test_what_does_not_fit_is_one_message(bundle, data, tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit) as left:
        joint_finetune.main(words(bundle, data, tmp_path / "out", **flags))
    shown = capsys.readouterr().err
    assert left.value.code == 2 and said in shown and "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_flags_of_a_model_are_refused_for_the_demo(capsys):
    with pytest.raises(SystemExit):
        joint_finetune.main(["--train", "full"])
    assert "--train without a model" in capsys.readouterr().err
