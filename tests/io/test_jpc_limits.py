"""Circuit files at the limits: a full disk when writing, and distributions that cost more to read than they are."""

import errno
import pickle

import numpy as np
import pytest

from codd_jax.circuits import HMM
from codd_jax.io import jpc, jpc_nodes


def tiny():
    return HMM(*(np.full(shape, 1 / shape[-1], np.float32) for shape in ((2,), (2, 2), (2, 5))), length=3)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(nodes, file, protocol):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pickle, "dump", full)
    with pytest.raises(OSError, match="the disk is full") as caught:
        jpc.write(tmp_path / "circuit.jpc", tiny())
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "circuit.jpc"))
    assert not list(tmp_path.iterdir())


def test_a_distribution_is_small_and_decoded_once(tmp_path, monkeypatch):
    nodes, path = jpc._node_dicts(tiny()), tmp_path / "circuit.jpc"
    decoded, read_pickle = [], jpc_nodes.read_pickle
    monkeypatch.setattr(jpc_nodes, "read_pickle", lambda *a: (decoded.append(a[1]), read_pickle(*a))[1])
    path.write_bytes(pickle.dumps(nodes, protocol=4))
    jpc.read(path)
    assert len(decoded) == 2  # the file, and one distribution for three inputs
    for node in nodes[:3]:
        node["dist"] = b"\x80\x04" + b"0" * 5000
    path.write_bytes(pickle.dumps(nodes, protocol=4))
    with pytest.raises(ValueError, match="a distribution of 5002 bytes"):
        jpc.read(path)
