"""Folders in the making: what lies beside them is left alone, and what cannot be continued is never taken up again."""

import pytest

from codd_jax.io.workspace import building, read_marker, write_json, write_marker

MEMORY = {"source": "a model in memory"}
JOB = {"source": "here", "content": "1"}


def build(out, job, **options):
    with building(out, job, **options) as partial:
        write_marker(partial, "bundle")


def killed(out, job, *files):
    """What a run leaves that was killed after writing some files."""
    partial = out.with_name(out.name + ".partial")
    partial.mkdir()
    write_json(partial / "job.json", job)
    for file in files:
        (partial / file).mkdir()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_replacing_a_folder_leaves_its_neighbours_alone(tmp_path):
    (tmp_path / "out.old").mkdir()
    (tmp_path / "out.old" / "thesis.tex").touch()
    for overwrite in (False, True):
        build(tmp_path / "out", JOB, overwrite=overwrite)
        assert names(tmp_path) == ["out", "out.old"] and names(tmp_path / "out.old") == ["thesis.tex"]
        assert names(tmp_path / "out") == ["codd.json"]


def test_a_failed_save_from_memory_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="full"), building(tmp_path / "out", MEMORY) as partial:
        (partial / "circuit").mkdir()
        raise OSError("full")
    assert names(tmp_path) == []
    build(tmp_path / "out", MEMORY)


@pytest.mark.parametrize("job", [MEMORY, {"source": "a backbone in memory"}, JOB])
def test_a_killed_save_from_memory_does_not_leak_into_the_next(tmp_path, job):
    killed(tmp_path / "out", MEMORY, "circuit")
    build(tmp_path / "out", job)
    assert names(tmp_path / "out") == ["codd.json"]


def test_a_save_from_memory_spares_what_can_be_continued_and_what_is_unknown(tmp_path):
    killed(tmp_path / "out", JOB, "params")
    with pytest.raises(FileExistsError, match="an interrupted run of here"):
        build(tmp_path / "out", MEMORY)
    build(tmp_path / "out", MEMORY, overwrite=True)
    (tmp_path / "own.partial").mkdir()
    (tmp_path / "own.partial" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="something unknown"):
        build(tmp_path / "own", MEMORY)


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_at_once_do_not_touch_one_folder(tmp_path, overwrite):
    pytest.importorskip("fcntl")
    with building(tmp_path / "out", JOB) as partial:
        (partial / "params").mkdir()
        with pytest.raises(BlockingIOError, match=r"another process is writing .*out just now"):
            build(tmp_path / "out", JOB, overwrite=overwrite)
        write_marker(partial, "bundle")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["codd.json", "params"]


def test_one_that_finishes_while_another_begins_is_not_overwritten(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    lock = fcntl.flock

    def finish_first(*args):
        monkeypatch.setattr(fcntl, "flock", lock)
        build(tmp_path / "out", MEMORY)
        lock(*args)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    with pytest.raises(FileExistsError, match="exists already"):
        build(tmp_path / "out", JOB)
    assert names(tmp_path) == ["out"]


def test_a_marker_that_is_nested_too_deeply(tmp_path):
    (tmp_path / "codd.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"codd\.json is not readable JSON \(it is nested too deeply\)"):
        read_marker(tmp_path)
