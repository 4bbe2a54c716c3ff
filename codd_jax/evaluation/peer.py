"""The public PyTorch loop as a worker process beside ours, so that both are timed in turn on the same weights."""

from __future__ import annotations

import json
import pathlib
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

from codd_jax.backbones import Transformer
from codd_jax.io.safetensors import save_huggingface


class PytorchPeer:
    """A running worker, as a context manager.

    Attributes:
      command: the interpreter and the worker script.
      checkout: a checkout of the public PyTorch CoDD.
      backbone: the LLaDA whose weights it runs.
    """

    def __init__(self, command: Sequence[str], checkout: str | pathlib.Path, backbone: Transformer):
        if backbone.config.family != "llada":
            raise ValueError(f"the public loop is compared on LLaDA, and this backbone is {backbone.config.family}")
        if not (pathlib.Path(checkout) / "eval" / "llada" / "llada_generate.py").is_file():
            raise FileNotFoundError(f"{checkout} is no checkout of the public PyTorch CoDD (eval/llada is not there)")
        self.command = [*command, str(checkout)]
        self.backbone = backbone

    def __enter__(self) -> PytorchPeer:
        """Saves the weights for the worker and starts it; ImportError where it cannot run."""
        self._scratch = tempfile.TemporaryDirectory()
        save_huggingface(self.backbone, None, self._scratch.name, max_shard_bytes=1 << 62)
        arguments = [*self.command, self._scratch.name, "--dtype", self.backbone.dtype.name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(arguments, **pipes)
        if not self._process.stdout.readline():
            reason = (self._process.stderr.read().strip().splitlines() or ["it ended without a word"])[-1]
            self.__exit__()
            raise ImportError(
                f"the PyTorch worker does not start: {reason}; name an interpreter that has torch and the checkout's "
                "packages with --pytorch-python"
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the worker and removes its weights."""
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._process.stderr.close()
        self._scratch.cleanup()

    def ask(self, **request: Any) -> dict[str, Any]:
        """`seconds` and `out` of one call; see `experiments/pytorch_peer.py` for the requests."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the PyTorch worker died: {self._process.stderr.read().strip()[-400:]}")
        return json.loads(line)
