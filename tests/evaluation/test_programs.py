"""Programs in answers: what is taken out of fences, and what passes its tests."""

import os
import time

import pytest

from codd_jax.evaluation.programs import extract_program, extract_programs, pass_at_1, passes

CODE = "def f():\n    return 1"


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        (CODE, CODE),
        (f"{CODE}\n```", CODE),
        (f"\n{CODE}\n```\nand more", CODE),
        (f"```\n{CODE}\n```", CODE),
        (f"```python\n{CODE}", CODE),
        (f"```python3\n{CODE}\n```\ntext\n```\nx = 1\n```", CODE),
        (f"```{CODE}```", CODE),
        (f"Sure:\n```Python\n{CODE}\n```", CODE),
        ("```python x = 1```", "x = 1"),
        ("```", ""),
        ("", ""),
    ],
)
def test_fences(answer, program):
    assert extract_program(answer).strip() == program
    assert extract_programs([[answer], [answer, ""]], [{}, {}])[1] == [extract_program(answer), ""]


def test_what_passes():
    assert pass_at_1(["assert f() == 1", "assert f() == 2"], [[CODE], [CODE]]) == 0.5
    assert pass_at_1("assert f() == 1", [CODE]) == 1.0
    for ending in ("raise SystemExit(0)", "import os; os._exit(0)", "print('x' * 99)\nassert False", "\0", "\udc80("):
        assert not passes(f"{CODE}\n{ending}", "assert f() == 1"), ending


def test_a_program_has_its_own_place_and_no_more_time_than_given(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_TEST", "1")
    assert passes("import os", "assert 'SECRET_OF_THE_TEST' not in os.environ and os.listdir('.') == []")
    assert not passes("x = bytearray(1 << 33)", "")
    started = time.monotonic()
    # It leaves a child behind that holds its output open.
    child = f"import os, time\nif os.fork() == 0:\n    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    assert not passes(child + "    time.sleep(60)\n", "time.sleep(60)", seconds=0.1)
    assert time.monotonic() - started < 20
    with pytest.raises(ProcessLookupError):
        for _ in range(50):
            os.kill(int((tmp_path / "pid").read_text()), 0)
            time.sleep(0.1)
