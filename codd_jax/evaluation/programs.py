"""Programs in answers: taken out of their fences, and run against a problem's tests in processes of their own.

lm-eval's own metric for this is fetched from the hub when it is first used, and forks; neither suits a machine without
a network or a process that holds accelerators. What counts as passed is the same.
"""

import contextlib
import functools
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

SECONDS = 3.0
# Beside them, for the other interpreter to come up.
_STARTING = 2.0
_FENCE = "```"
# A fence's language stands alone on its line; on one line with the program it must be Python's own name.
_LANGUAGE = re.compile(r"[ \t]*[\w+#.-]*[ \t]*\n|[ \t]*python[\d.]*\b", re.IGNORECASE)
# Limits that a runaway program meets before the machine does: seconds of work, bytes of memory, bytes of a file.
_CPU_SECONDS, _MEMORY, _FILE_BYTES = int(SECONDS) + 1, 4 << 30, 16 << 20
# What the other process runs. The verdict is a word that the program does not know, so that leaving early is no pass.
_RUNNER = f"""
import os, resource, sys
for limit, value in ((resource.RLIMIT_CPU, {_CPU_SECONDS}), (resource.RLIMIT_AS, {_MEMORY}),
                     (resource.RLIMIT_FSIZE, {_FILE_BYTES}), (resource.RLIMIT_CORE, 0)):
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
verdict, program = sys.stdin.read().split("\\n", 1)
channel = os.dup(1)
silence = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(silence, stream)
exec(compile(program, "answer", "exec"), {{}})
os.write(channel, verdict.encode())
"""


def extract_program(text: str) -> str:
    """The program in an answer that continues an opened fence, wherever its own fences stand.

    An answer that opens with a fence is read up to the fence that closes it. Otherwise an odd number of fences closes
    what the prompt has opened, and the program is what stands before the first; an even number encloses a block of
    its own, and the first one is taken. A fence that is never closed ends with the answer.
    """
    text = text.strip()
    before, *blocks = text.split(_FENCE)
    if blocks and (not before or len(blocks) % 2 == 0):
        inside = blocks[0]
        language = _LANGUAGE.match(inside)
        return inside[language.end() if language else 0 :].strip("\n").rstrip()
    return before.rstrip()


def extract_programs(answers: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """lm-eval's form of `extract_program`: lists of answers a problem, and the problems, which have no say."""
    del docs
    return [[extract_program(answer) for answer in several] for several in answers]


def pass_at_1(references: str | Sequence[str], predictions: Sequence[str | Sequence[str]]) -> float:
    """lm-eval's form of `passes`: the share of programs that pass their tests (pass@1 with one sample a problem).

    Args:
      references: the tests of each problem, as Python text.
      predictions: one program a problem, or a list that begins with it.
    """
    tests = [references] if isinstance(references, str) else list(references)
    programs = [entry if isinstance(entry, str) else entry[0] for entry in predictions]
    results = [passes(program, test) for program, test in zip(programs, tests, strict=True)]
    return sum(results) / len(results)


@functools.lru_cache(maxsize=4096)
def passes(program: str, tests: str, seconds: float = SECONDS) -> bool:
    """Whether a program runs through its tests without an exception in time.

    The process is another one, in an empty folder, with limits on work, memory and files, and without this one's
    environment. It is no sandbox: network and readable files are open to it. Each pair is run once, so that a score
    is the same wherever it is asked for.
    """
    verdict = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="codd_jax_program_") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            source = f"{verdict}\n{program}\n{tests}".encode("utf-8", "replace")
            said, _ = process.communicate(source, timeout=seconds + _STARTING)
        except subprocess.TimeoutExpired:
            return False
        finally:
            # Whatever the program has started goes with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return said.decode() == verdict
