"""`python -m convert`: what it recognises, what it refuses and how, and what it leaves behind when it is killed."""

import dataclasses
import json
import shutil
import time

import numpy as np
import pytest
from flax import nnx

from codd_jax.backbones import PRESETS
from codd_jax.circuits import HMM
from codd_jax.io import checkpoint, circuit, jpc
from codd_jax.io.tensors import write_safetensors
from convert.__main__ import main, parse
from experiments import random_checkpoint
from experiments.conversion_memory import convert as convert_in_process
from experiments.random_checkpoint import write_checkpoint

TINY = dataclasses.replace(
    PRESETS["dream-1m"], width=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, ffn_width=24,
    vocab_size=40, mask_id=39, eos_id=38, pad_id=38, bos_id=38,
)  # fmt: skip


@pytest.fixture(scope="module")
def dream(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("dream"), TINY)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_dream.py").write_text("raise SystemExit")
    return folder


@pytest.fixture(scope="module")
def hmm():
    random = np.random.default_rng(0)
    rows = [random.random(shape, np.float32) for shape in ((4,), (4, 4), (4, 40))]
    return HMM(*(table / table.sum(-1, keepdims=True) for table in rows), length=5)


def run(*arguments):
    return main([*map(str, arguments), "--quiet"])


def weights(backbone):
    return [np.asarray(leaf[...]) for _, leaf in nnx.to_flat_state(nnx.state(backbone, nnx.Param))]


def load(folder, **options):
    return checkpoint.open_backbone(folder).load(dtype="float32", progress=False, **options)


@pytest.mark.parametrize(
    "name", ["llada_tiny", "llada_tiny_sharded", "llada_tiny_tied", "llada_tiny_opts", "dream_tiny_bf16"]
)
def test_golden_checkpoints_keep_every_bit(fixtures_dir, tmp_path, name, capsys):
    source, out = fixtures_dir / name, tmp_path / "out"
    assert run(source, out) == 0
    assert str(out) in capsys.readouterr().out
    for ours, original in zip(weights(load(out)), weights(load(source)), strict=True):
        np.testing.assert_array_equal(ours, original)
    marker = json.loads((out / "codd.json").read_text())
    assert (marker["kind"], marker["family"]) == ("backbone", name.split("_")[0])
    assert marker["source"] == str(source)
    copied = {"config.json", "tokenizer_config.json", "merges.txt", "vocab.json", "tokenizer.json"}
    assert copied & {file.name for file in source.iterdir()} <= {file.name for file in out.iterdir()}


def test_dtype_and_companions(dream, tmp_path):
    assert run(dream, tmp_path / "out", "--dtype", "float32") == 0
    assert json.loads((tmp_path / "out" / "codd.json").read_text())["dtype"] == ["float32"]
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"codd.json", "config.json", "tokenizer.json", "params"}  # no code goes along


def test_circuits_there_and_back(hmm, tmp_path):
    jpc.write(tmp_path / "c.jpc", hmm)
    assert run(tmp_path / "c.jpc", tmp_path / "folder") == 0
    assert circuit.describe(tmp_path / "folder") == circuit.CircuitInfo(5, 4, 40, format="orbax")
    assert run(tmp_path / "folder", tmp_path / "deep" / "back.jpc", "--to-jpc") == 0
    assert (tmp_path / "deep" / "back.jpc").read_bytes() == (tmp_path / "c.jpc").read_bytes()


@pytest.fixture
def unified(dream, hmm, tmp_path):
    """A folder as PyTorch-CoDD's save_pretrained leaves it."""
    folder = tmp_path / "unified"
    shutil.copytree(dream, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["CoddDream"]}))
    jpc.write(folder / "pc_model.jpc", hmm)
    settings = {"base_model_id": "Dream-org/Dream-v0-Instruct-7B", "base_model_type": "dream", "mask_id": 39}
    settings |= {"vocab_size": 40, "num_steps": 128, "gen_length": 64, "block_length": 5, "temperature": 0.0}
    settings |= {"cfg_scale": 0.0, "remasking": "low_confidence", "pc_temperature": 0.1, "pc_frac": 0.7}
    (folder / "codd_config.json").write_text(json.dumps({**settings, "reverse_frac": False}))
    return folder


def test_unified_folders_become_bundles(unified, dream, hmm, tmp_path):
    assert checkpoint.parts(unified) == (unified, unified / "pc_model.jpc")
    out = tmp_path / "out"
    assert run(unified, out) == 0
    assert checkpoint.parts(out) == (out / "backbone", out / "circuit")
    for ours, original in zip(weights(load(out)), weights(load(dream)), strict=True):
        np.testing.assert_array_equal(ours, original)
    np.testing.assert_array_equal(np.asarray(circuit.load_circuit(out).emission), hmm.emission)
    assert circuit.describe(out).mask_id == 39
    defaults = checkpoint.decode_defaults(out)
    assert defaults == checkpoint.decode_defaults(unified)
    assert (defaults["steps"], defaults["pc_frac"], defaults["block_length"]) == (128, 0.7, 5)


def test_parts_of_a_unified_folder_that_do_not_belong_together(unified, tmp_path, capsys):
    settings = json.loads((unified / "codd_config.json").read_text())
    (unified / "codd_config.json").write_text(json.dumps({**settings, "mask_id": 3}))
    assert run(unified, tmp_path / "out") == 2
    assert "mask id 3" in capsys.readouterr().err
    jpc.write(unified / "pc_model.jpc", HMM(np.ones(1), np.ones((1, 1)), np.full((1, 30), 1 / 30), length=4))
    assert run(unified, tmp_path / "out") == 2
    assert "30 tokens and the dream backbone over 40" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_adapter(dream, tmp_path, capsys):
    random = np.random.default_rng(1)
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": random.random(shape, np.float32)
        for layer in range(2)
        for side, shape in (("A", (2, 16)), ("B", (16, 2)))
    }
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_safetensors(
        folder / "adapter_model.safetensors",
        {name: (value.dtype, value.shape) for name, value in tensors.items()},
        tensors.__getitem__,
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    assert run(dream, tmp_path / "out", "--adapter", folder, "--dtype", "float32") == 0
    assert "adapter" in json.loads((tmp_path / "out" / "codd.json").read_text())
    base, merged = (nnx.to_pure_dict(nnx.state(load(path), nnx.Param)) for path in (dream, tmp_path / "out"))
    change = [tensors[name.replace("_A", "_B")] @ tensors[name] for name in tensors if "_A" in name]
    difference = np.asarray(merged["blocks"]["q"]["weight"]) - np.asarray(base["blocks"]["q"]["weight"])
    np.testing.assert_allclose(difference, change, atol=2e-2)  # the sum is rounded to the base's bfloat16
    np.testing.assert_array_equal(np.asarray(merged["head"]["weight"]), np.asarray(base["head"]["weight"]))
    capsys.readouterr()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "use_dora": True}))
    assert run(dream, tmp_path / "dora", "--adapter", folder) == 2
    assert "DoRA" in capsys.readouterr().err


def test_bad_input_is_one_message_and_exit_code_2(fixtures_dir, dream, hmm, tmp_path, capsys):
    jpc.write(tmp_path / "c.jpc", hmm)
    empty = tmp_path / "empty"
    empty.mkdir()
    peft = tmp_path / "peft"
    peft.mkdir()
    (peft / "adapter_config.json").write_text("{}")
    bert = tmp_path / "bert"
    shutil.copytree(dream, bert)
    (bert / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    cut = tmp_path / "cut"
    shutil.copytree(dream, cut)
    file = next(cut.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    taken = tmp_path / "taken"
    shutil.copytree(dream, taken)
    cases = {
        ("nowhere/at/all", "out"): "neither an existing path nor a hub id",
        (empty, "out"): "neither a config.json",
        (bert, "out"): "bert",
        (cut, "out"): "truncated",
        (dream, taken): "exists already",
        (dream, "out.jpc"): "--to-jpc",
        (dream, "out.jpc", "--to-jpc"): "holds no circuit",
        (tmp_path / "c.jpc", "out", "--adapter", dream): "leave --adapter out",
        (tmp_path / "c.jpc", "back.bin", "--to-jpc"): r".jpc",
        (tmp_path / "c.jpc", "back.jpc", "--to-jpc", "--adapter", dream): "--adapter and --dtype",
        (tmp_path / "c.jpc", "back.jpc", "--to-jpc", "--dtype", "float32"): "--adapter and --dtype",
        (peft, "out"): "pass it as --adapter",
        (fixtures_dir / "jpc" / "reject_outer_global.jpc", "out"): "builtins.print",
    }
    for (source, out, *flags), reason in cases.items():
        before = sorted(path.name for path in tmp_path.iterdir())
        assert run(source, tmp_path / out, *flags) == 2, source
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and reason in captured.err
        assert len(captured.err.splitlines()) == 1 and captured.out == ""
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_too_little_memory_is_one_message(hmm, tmp_path, capsys, monkeypatch):
    jpc.write(tmp_path / "c.jpc", hmm)
    monkeypatch.setattr(circuit, "describe", lambda *_: (_ for _ in ()).throw(MemoryError("Unable to allocate 9 TiB")))
    assert run(tmp_path / "c.jpc", tmp_path / "out") == 2
    assert capsys.readouterr().err.endswith("needs more memory than there is (Unable to allocate 9 TiB)\n")


@pytest.mark.parametrize("layers", ["0", "-1"])
def test_random_checkpoints_have_layers(tmp_path, capsys, layers):
    with pytest.raises(SystemExit) as caught:
        random_checkpoint.main([str(tmp_path / "out"), "--layers", layers])
    assert caught.value.code == 2 and f"--layers is {layers}; at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "examples:" in text and "--to-jpc" in text and "pc_model.jpc" in text


def narrow(folder, layers):
    """A model whose blocks are most of it: 2.4 MB of float32 a layer."""
    config = dataclasses.replace(PRESETS["llada-1m"], width=256, ffn_width=512, head_dim=32, num_layers=layers)
    return write_checkpoint(folder, config, dtype="float32")


def test_killed_half_way_and_continued_with_memory_independent_of_depth(tmp_path):
    deep, shallow = narrow(tmp_path / "deep", 32), narrow(tmp_path / "shallow", 8)
    out = tmp_path / "out"
    killed = convert_in_process(str(deep), out, kill_at_bytes=40_000_000)
    assert killed["code"] == -9
    assert not out.exists() and (tmp_path / "out.partial").is_dir()
    unfinished = time.time()
    continued = convert_in_process(str(deep), out)
    assert continued["code"] == 0
    assert not (tmp_path / "out.partial").exists()
    kept = [file for file in out.rglob("*") if file.is_file() and file.stat().st_mtime < unfinished]
    assert sum(file.stat().st_size for file in kept) > 15_000_000  # the first run's work was not done again
    for ours, original in zip(weights(load(out)), weights(load(deep)), strict=True):
        np.testing.assert_array_equal(ours, original)

    # Twenty-four more layers are 60 MB more weights; both runs hold one batch at a time.
    other = convert_in_process(str(shallow), tmp_path / "small")
    assert other["code"] == 0
    assert abs(continued["peak_rss_anon_mb"] - other["peak_rss_anon_mb"]) < 100
