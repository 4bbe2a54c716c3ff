"""Converted folders: the same weights in any layout, complete or absent, continued after any interruption."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax.backbones import PRESETS
from codd_jax.io import arrays, checkpoint, converted
from codd_jax.io.workspace import building, read_marker, write_marker
from experiments.random_checkpoint import write_checkpoint

CONFIG = dataclasses.replace(
    PRESETS["llada-1m"], width=16, num_layers=3, num_heads=4, num_kv_heads=4, head_dim=4, ffn_width=24,
    vocab_size=40, mask_id=39, eos_id=38, pad_id=38,
)  # fmt: skip
JOB = {"source": "here", "content": "1"}


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("source"), CONFIG, dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, huggingface):
    out = tmp_path_factory.mktemp("converted") / "backbone"
    convert(huggingface, out)
    return out


def convert(source, out, **options):
    with building(out, JOB) as partial:
        converted.write_backbone(partial, checkpoint.open_backbone(source), progress=False, **options)


def weights(backbone):
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(backbone, nnx.Param))}


def assert_same(ours, expected):
    ours, expected = weights(ours), weights(expected)
    assert ours.keys() == expected.keys()
    for path, array in expected.items():
        assert ours[path].dtype == array.dtype
        np.testing.assert_array_equal(ours[path], array, err_msg=str(path))


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_restored_equals_loaded_from_the_original(huggingface, folder, layout, dtype):
    options = {"dtype": dtype, "layout": layout, "progress": False}
    restored = checkpoint.open_backbone(folder).load(**options)
    assert_same(restored, checkpoint.open_backbone(huggingface).load(**options))
    assert restored.config == CONFIG


def test_a_cast_is_stored(huggingface, tmp_path, monkeypatch):
    monkeypatch.setattr(converted, "_SCRATCH_BYTES", 256)  # the way of large tensors, through a file
    convert(huggingface, tmp_path / "out", dtype=jnp.bfloat16)
    stored = arrays.ArrayStore(tmp_path / "out" / "params")
    assert {stored.dtype(name) for name in stored.names()} == {jnp.dtype("bfloat16")}
    restored = checkpoint.open_backbone(tmp_path / "out").load(dtype="bfloat16", progress=False)
    assert_same(restored, checkpoint.open_backbone(huggingface).load(dtype="bfloat16", progress=False))
    assert not (tmp_path / "out" / "scratch").exists()


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_save_backbone(huggingface, tmp_path, layout):
    backbone = checkpoint.open_backbone(huggingface).load(layout=layout, progress=False)
    converted.save_backbone(tmp_path / "saved", backbone)
    assert_same(checkpoint.open_backbone(tmp_path / "saved").load(layout=layout, progress=False), backbone)
    with pytest.raises(FileExistsError, match="exists already"):
        converted.save_backbone(tmp_path / "saved", backbone)
    converted.save_backbone(tmp_path / "saved", backbone, overwrite=True)


def test_an_interrupted_conversion_continues(huggingface, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BATCH_BYTES", 4096)
    out, save, saved = tmp_path / "out", arrays.ocp.partial.save, []

    def interrupted(path, state):
        if len(saved) == 4:
            raise KeyboardInterrupt
        saved.append(set(state))
        save(path, state)

    monkeypatch.setattr(arrays.ocp.partial, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(huggingface, out)
    assert not out.exists()
    with pytest.raises(ValueError, match="interrupted conversion"):
        checkpoint.open_backbone(tmp_path / "out.partial")

    again = []
    monkeypatch.setattr(arrays.ocp.partial, "save", lambda path, state: (again.append(set(state)), save(path, state)))
    convert(huggingface, out)
    assert again and not set.union(*saved) & set.union(*again)
    assert set.union(*saved, *again) == arrays.ArrayStore(out / "params").names()
    assert_same(
        checkpoint.open_backbone(out).load(progress=False), checkpoint.open_backbone(folder).load(progress=False)
    )
    assert not (tmp_path / "out.partial").exists()


def test_killed_while_the_parts_are_merged(huggingface, folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(arrays.ocp.partial, "finalize", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert(huggingface, tmp_path / "out")
    shutil.rmtree(next((tmp_path / "out.partial" / "params.partial_save").iterdir()) / "state")
    convert(huggingface, tmp_path / "out")
    options = {"progress": False}
    assert_same(
        checkpoint.open_backbone(tmp_path / "out").load(**options), checkpoint.open_backbone(folder).load(**options)
    )


def test_another_job_does_not_continue_it(tmp_path):
    with pytest.raises(RuntimeError), building(tmp_path / "out", JOB) as partial:
        (partial / "something").touch()
        raise RuntimeError
    other = {"source": "elsewhere", "content": "2", "dtype": "bfloat16"}
    with pytest.raises(FileExistsError, match=r"of here; this one is elsewhere \(dtype bfloat16\)"):
        building(tmp_path / "out", other).__enter__()
    with building(tmp_path / "out", other, overwrite=True) as partial:
        assert not (partial / "something").exists()
        write_marker(partial, "backbone", number=1)
    with pytest.raises(FileExistsError, match="exists already"):
        building(tmp_path / "out", other).__enter__()
    with building(tmp_path / "out", other, overwrite=True) as partial:
        assert read_marker(tmp_path / "out")["number"] == 1  # the old one stays until the new one is complete
        write_marker(partial, "backbone", number=2)
    assert read_marker(tmp_path / "out")["number"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_overwrite_spares_what_was_not_converted(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="remove it yourself"):
        building(tmp_path / "out", JOB, overwrite=True).__enter__()


def test_a_full_disk(huggingface, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))
        with pytest.raises(OSError, match=r"0\.00 GB are free") as caught:
            convert(huggingface, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC

    def full(path, state):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(arrays.ocp.partial, "save", full)
        with pytest.raises(OSError, match="make room and run the same command again"):
            convert(huggingface, tmp_path / "out")
    convert(huggingface, tmp_path / "out")
    assert read_marker(tmp_path / "out")["kind"] == "backbone"


def test_a_full_disk_while_casting(huggingface, tmp_path, monkeypatch):
    monkeypatch.setattr(converted, "_SCRATCH_BYTES", 256)
    with monkeypatch.context() as patch:
        error = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(OSError, match="run the same command again") as caught:
            convert(huggingface, tmp_path / "out", dtype=jnp.bfloat16)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "out.partial" / "scratch").exists()
    weights_bytes, largest = 2 * CONFIG.num_params, 2 * 40 * 16
    for room, enough in ((weights_bytes + largest - 1, False), (weights_bytes + largest, True)):
        with monkeypatch.context() as patch:
            patch.setattr(converted, "saved_bytes", lambda *_: 0)
            patch.setattr(shutil, "disk_usage", lambda path, room=room: shutil._ntuple_diskusage(room, 0, room))
            if enough:
                convert(huggingface, tmp_path / "out", dtype=jnp.bfloat16)
            else:
                with pytest.raises(OSError, match="GB are to be written"):
                    convert(huggingface, tmp_path / "out", dtype=jnp.bfloat16)


def test_a_failed_save_from_memory_can_be_tried_again(huggingface, tmp_path, monkeypatch):
    backbone = checkpoint.open_backbone(huggingface).load(progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(converted, "save_arrays", lambda *_, **__: (_ for _ in ()).throw(OSError("the disk is full")))
        with pytest.raises(OSError, match="full"):
            converted.save_backbone(tmp_path / "saved", backbone)
    converted.save_backbone(tmp_path / "saved", backbone)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_damaged_and_foreign_folders(folder, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    shutil.rmtree(damaged / "params" / "state")
    with pytest.raises(ValueError, match="no readable Orbax checkpoint"):
        checkpoint.open_backbone(damaged)
    shutil.rmtree(damaged / "params")
    with pytest.raises(FileNotFoundError, match="run it again"):
        checkpoint.open_backbone(damaged)
    (damaged / "codd.json").write_text(json.dumps({"format": "codd_jax", "version": 99, "kind": "backbone"}))
    with pytest.raises(ValueError, match="version 99"):
        checkpoint.open_backbone(damaged)
    (damaged / "codd.json").write_text("{")
    with pytest.raises(ValueError, match=r"codd\.json is not readable"):
        checkpoint.open_backbone(damaged)


def test_missing_tensors_are_found_before_weights_are_read(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "n_layers": 4}))
    with pytest.raises(ValueError, match=r"missing \(9\)"):
        checkpoint.open_backbone(other)


EIGHT_DEVICES = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from flax import nnx
from codd_jax.io import checkpoint
from codd_jax.sharding import make_mesh
folder, original = sys.argv[1:]
mesh = make_mesh("data:2,model:4")
for layout in ("stacked", "unrolled"):
    ours = checkpoint.open_backbone(folder).load(mesh=mesh, layout=layout, progress=False)
    whole = checkpoint.open_backbone(original).load(layout=layout, progress=False)
    q = nnx.to_flat_state(nnx.state(ours, nnx.Param))
    split = [leaf for path, leaf in q if path[-2:] == ("q", "weight")]
    assert all(leaf[...].sharding.spec[-2] == "model" for leaf in split), split
    pairs = zip(q, nnx.to_flat_state(nnx.state(whole, nnx.Param)), strict=True)
    assert all(np.array_equal(a[...], b[...]) for (_, a), (_, b) in pairs)
print("equal")
"""


def test_restore_into_shardings(huggingface, folder):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", EIGHT_DEVICES, str(folder), str(huggingface)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_arrays_are_placed_as_they_are_read(folder):
    store = arrays.ArrayStore(folder / "params")
    name = "model.transformer.wte.weight"
    placed = store.place(name)
    assert placed.devices() == {jax.local_devices()[0]}
    np.testing.assert_array_equal(np.asarray(placed), store.read(name))
