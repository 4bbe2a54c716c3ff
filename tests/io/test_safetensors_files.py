"""Reading and writing safetensors files: lazily, and with an error that names the file for every way to be broken."""

import errno
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from codd_jax.io.safetensors import SafetensorsFolder
from codd_jax.io.tensors import write_safetensors

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "c": np.array(7.0, np.float32),
}


def _shards(folder):
    save_file({"a": TENSORS["a"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": TENSORS["b"], "c": TENSORS["c"]}, folder / "model-00002-of-00002.safetensors")
    weight_map = {name: f"model-0000{1 if name == 'a' else 2}-of-00002.safetensors" for name in TENSORS}
    _index(folder, weight_map)
    return weight_map


def _index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _check(source):
    assert source.names() == set(TENSORS)
    for name, expected in TENSORS.items():
        assert source.shape(name) == expected.shape and source.dtype(name) == expected.dtype
        np.testing.assert_array_equal(source.read(name), expected)
    np.testing.assert_array_equal(source.read_slice("a", (slice(1, 3), slice(0, 2))), TENSORS["a"][1:3, :2])
    np.testing.assert_array_equal(source.read_slice("b", (slice(None), slice(1, 3))), TENSORS["b"][:, 1:3])


def test_one_file_shards_and_shards_without_index_read_alike(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    _check(SafetensorsFolder(tmp_path))
    _check(SafetensorsFolder(tmp_path / "model.safetensors"))
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    _shards(sharded)
    _check(SafetensorsFolder(sharded))
    assert SafetensorsFolder(sharded).origin("c").endswith("model-00002-of-00002.safetensors")
    (sharded / "model.safetensors.index.json").unlink()
    _check(SafetensorsFolder(sharded))


def test_absent_names_are_key_errors_with_the_folder(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(KeyError, match="holds no tensor named 'z'"):
        SafetensorsFolder(tmp_path).read("z")


@pytest.mark.parametrize("with_index", [True, False])
def test_a_missing_shard_is_named(tmp_path, with_index):
    _shards(tmp_path)
    if not with_index:
        (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 2 shards: model-00001-of-00002\.safetensors"):
        SafetensorsFolder(tmp_path)


def test_an_index_that_names_absent_tensors(tmp_path):
    weight_map = _shards(tmp_path)
    _index(tmp_path, weight_map | {"ghost": "model-00001-of-00002.safetensors"})
    with pytest.raises(ValueError, match=r"names 1 tensors that its shards do not hold there: ghost"):
        SafetensorsFolder(tmp_path)
    _index(tmp_path, weight_map | {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"})
    with pytest.raises(ValueError, match="names 2 tensors"):
        SafetensorsFolder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    _shards(tmp_path)
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"'b' is stored twice, in model-00001.* and in model-00002"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x"}}']
)
def test_a_broken_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        SafetensorsFolder(tmp_path)


def _truncated(data):
    return data[:-5]


def _cut_in_header(data):
    return data[:20]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncated, "truncated or not a safetensors file"),
        (_cut_in_header, "truncated or not a safetensors file"),
        (lambda data: b"PK\x03\x04" + data, "truncated or not a safetensors file"),
        (lambda data: b"", "is empty"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
)
def test_truncated_and_foreign_files_are_named(tmp_path, damage, said):
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=rf"model\.safetensors cannot be read .*{said}"):
        SafetensorsFolder(tmp_path)


def test_folders_without_safetensors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        SafetensorsFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        SafetensorsFolder(tmp_path / "nowhere")
    (tmp_path / "pytorch_model-00001-of-00002.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"PyTorch pickles \(pytorch_model-00001.*safe_serialization=True"):
        SafetensorsFolder(tmp_path)


def test_the_writer_agrees_with_the_public_reader(tmp_path):
    read = []
    specs = {name: (array.dtype, array.shape) for name, array in TENSORS.items()}
    write_safetensors(tmp_path / "x.safetensors", specs, lambda name: read.append(name) or TENSORS[name])
    assert read == list(TENSORS)
    loaded = load_file(tmp_path / "x.safetensors")
    for name, expected in TENSORS.items():
        assert loaded[name].dtype == expected.dtype
        np.testing.assert_array_equal(loaded[name], expected)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_failed_write_leaves_nothing_and_says_why(tmp_path):
    def full(name):
        raise OSError(errno.ENOSPC, "No space left on device")

    specs = {"a": (TENSORS["a"].dtype, (3, 4))}
    with pytest.raises(OSError, match=r"the disk is full.*x\.safetensors"):
        write_safetensors(tmp_path / "x.safetensors", specs, full)
    with pytest.raises(ValueError, match=r"a: got float32\(2, 2\), announced float32\(3, 4\)"):
        write_safetensors(tmp_path / "x.safetensors", specs, lambda name: np.zeros((2, 2), np.float32))
    assert not list(tmp_path.iterdir())
