"""The store gives back what the backbone made, continues, and refuses or names what does not belong or is damaged."""

import errno
import functools
import subprocess
import sys

import jax
import numpy as np
import pytest

from codd_jax.training import store as store_module
from codd_jax.training.potentials import Head, make_encoder
from codd_jax.training.rows import mask_rows
from codd_jax.training.store import StoredWindows, build_store, fingerprint
from codd_jax.training.window_store import WindowStore
from tests.training.test_potentials import MASK, T, make_backbone, make_rows

ROWS = [make_rows(3, 2, 3, 1), make_rows(11, 9, 7, bucket=16)]
WINDOWS = 2 * (4 + 8)


@functools.cache
def backbone():
    """One backbone for all tests."""
    return make_backbone()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Five windows a shard."""
    monkeypatch.setattr(store_module, "_SHARD_BYTES", 5 * T * 16 * 4)


def build(folder, **options):
    """A store with two masks a row."""
    return build_store(folder, backbone(), ROWS, **{"masks": 2, "batch_rows": 2, "progress": False, **options})


def everything(folder):
    """All that a store holds."""
    return WindowStore(folder).read(np.arange(WINDOWS))


def test_a_store_holds_what_the_backbone_makes(tmp_path):
    store = build(tmp_path / "a")
    assert store.finished == store.num_windows == WINDOWS and store.shard_windows == 5
    windows = everything(tmp_path / "a")
    # The second mask of the first group, computed here.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0)
    noisy, masked, _ = mask_rows(key, ROWS[0], MASK)
    starts = np.full((4, 1), 3)
    expected = make_encoder(backbone(), T)(noisy, ROWS[0].tokens, masked, ROWS[0].lengths, starts)
    got = windows.take(np.arange(12, 16))
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(got.masked, expected.masked)
    used = np.asarray(expected.masked).any(1)
    assert used.any()
    np.testing.assert_allclose(got.hidden[used], np.asarray(expected.hidden)[used], atol=1e-6)
    source = StoredWindows(Head.of(backbone()), store, store, batch_size=3)
    assert source.batch(0).hidden.shape == (3, T, 16) and source.batch(0).masked.any(1).all()
    assert len(source) == windows.masked.any(1).sum() == len(source.windows().tokens)
    assert sum(len(part.tokens) for part in source.validation()) == WINDOWS


def test_nothing_is_computed_twice(tmp_path, monkeypatch):
    build(tmp_path / "a")
    monkeypatch.setattr(store_module, "make_encoder", None)
    build(tmp_path / "a")


@pytest.mark.parametrize("stop", [1, 3])
def test_a_build_that_stops_continues(tmp_path, monkeypatch, stop):
    build(tmp_path / "whole")
    write = WindowStore.write

    def failing(self, windows):
        if self.finished >= 5 * stop:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, windows)

    monkeypatch.setattr(WindowStore, "write", failing)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path / "a")
    monkeypatch.setattr(WindowStore, "write", write)
    assert WindowStore(tmp_path / "a").finished == 5 * stop
    with pytest.raises(ValueError, match=f"holds {5 * stop} of {WINDOWS} windows"):
        StoredWindows(Head.of(backbone()), WindowStore(tmp_path / "a"))
    build(tmp_path / "a")
    whole, again = everything(tmp_path / "whole"), everything(tmp_path / "a")
    np.testing.assert_allclose(again.hidden, whole.hidden, atol=1e-6)
    np.testing.assert_array_equal(again.tokens, whole.tokens)
    np.testing.assert_array_equal(again.masked, whole.masked)


def test_a_full_disk_is_said_and_what_was_written_stays(tmp_path):
    store = build(tmp_path / "a")
    full = OSError(errno.ENOSPC, "No space left on device")

    class Array:
        def __getitem__(self, _):
            raise full

    before = everything(tmp_path / "a")
    again = WindowStore(tmp_path / "b", store.settings)
    again.write(before.take(slice(0, 5)))
    again.__dict__["_arrays"] = {"hidden": Array()}
    with pytest.raises(OSError, match=r"the disk is full .* after 5 of 24 windows"):
        again.write(before.take(slice(5, 10)))
    kept = WindowStore(tmp_path / "b")
    assert kept.finished == 5
    np.testing.assert_array_equal(kept.read(np.arange(5)).hidden, before.hidden[:5])


def test_other_settings_are_refused(tmp_path):
    build(tmp_path / "a", about={"tokenizer": "abc"})
    other = make_backbone()
    other.embed.weight[...] = other.embed.weight[...] + 1e-3
    assert fingerprint(other) != fingerprint(backbone()) == fingerprint(make_backbone())
    with pytest.raises(ValueError, match=r"backbone: .* before, .* now"):
        build_store(tmp_path / "a", other, ROWS, masks=2, about={"tokenizer": "abc"}, progress=False)
    with pytest.raises(ValueError, match=r"masks: 2 before, 3 now(.|\n)*seed: 0 before, 4 now(.|\n)*tokenizer: 'abc'"):
        build(tmp_path / "a", masks=3, seed=4, about={"tokenizer": "def"})
    with pytest.raises(ValueError, match=r"rows: .* before"):
        build_store(tmp_path / "a", backbone(), ROWS[:1], masks=2, progress=False)


def test_a_damaged_shard_is_named(tmp_path):
    build(tmp_path / "a")
    shard = tmp_path / "a" / "hidden" / "c" / "2" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 255
    shard.write_bytes(content)
    store = WindowStore(tmp_path / "a")
    store.read(np.arange(0, 10))
    with pytest.raises(ValueError, match=r"shard 2 .*windows 10 to 14.* is damaged"):
        store.read(np.arange(WINDOWS))


def test_what_is_not_there_or_does_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no hidden states"):
        WindowStore(tmp_path / "nothing")
    store = build(tmp_path / "a")
    with pytest.raises(ValueError, match="states of width 16 and the head reads 8"):
        StoredWindows(Head(np.zeros((32, 8)), None), store)


def test_a_killed_build_continues(tmp_path):
    script = f"""
import os, signal
from codd_jax.training import store
from tests.training.test_store import build, WindowStore, store_module
store_module._SHARD_BYTES = {5 * T * 16 * 4}
write = WindowStore.write
def killed(self, windows):
    if self.finished == 10:
        self._array("hidden")[10:15].write(windows.hidden).result()
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, windows)
WindowStore.write = killed
build({str(tmp_path / "a")!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr[-2000:]
    assert WindowStore(tmp_path / "a").finished == 10
    build(tmp_path / "a")
    build(tmp_path / "b")
    np.testing.assert_allclose(everything(tmp_path / "a").hidden, everything(tmp_path / "b").hidden, atol=1e-6)
