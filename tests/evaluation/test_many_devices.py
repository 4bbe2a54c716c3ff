"""Evaluations over devices and processes, and killed ones: the same samples whatever happened to them."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.oracles.tiny_evaluation import read, save_checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def start(checkpoint, folder, *words, devices=1) -> subprocess.Popen:
    """`tests.oracles.tiny_evaluation` as a process."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    # Programs are shared between the processes, and run but for moments.
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(checkpoint.parent / "xla"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "tests.oracles.tiny_evaluation", str(checkpoint), str(folder), *words]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    """What it said; fails with it if it failed."""
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 0, said[-3000:]
    return said


@pytest.fixture(scope="module")
def undisturbed(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(start(checkpoint, folder))
    return read(folder / "none")


def test_meshes_change_nothing(checkpoint, undisturbed, tmp_path):
    meshes = ["data:8", "data:4,model:2", "model:8"]
    said = finish(start(checkpoint, tmp_path, *meshes, devices=8))
    for mesh in meshes:
        assert read(tmp_path / mesh) == undisturbed, mesh
    assert "model axis of 8 does not divide num_heads = 4" in said


def test_two_processes_write_what_one_does(checkpoint, undisturbed, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = ["data:2,model:2", "--coordinator", f"localhost:{port}", "--num_processes", "2", "--process_id"]
    folders = [tmp_path / "first", tmp_path / "second"]
    processes = [start(checkpoint, folder, *common, str(n), devices=2) for n, folder in enumerate(folders)]
    for process in processes:
        finish(process)
    assert read(folders[0] / "data:2,model:2") == undisturbed
    assert not folders[1].exists(), "the first process alone writes"


def test_killed_at_any_time_it_continues_to_the_same_samples(checkpoint, undisturbed, tmp_path):
    samples = tmp_path / "none" / "samples.jsonl"
    for target in (1, 9, 18):
        process = start(checkpoint, tmp_path)
        while process.poll() is None and (not samples.exists() or samples.read_bytes().count(b"\n") < target):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was to be killed before its end"
    assert samples.read_bytes().count(b"\n") < 24
    finish(start(checkpoint, tmp_path))
    assert read(tmp_path / "none") == undisturbed
