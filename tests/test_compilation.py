"""Programs kept on disk and programs made ahead: where they lie, and that they are the ones that run."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from flax import nnx

from codd_jax import CoDD, DecodeConfig
from codd_jax.backbones import PRESETS, Transformer
from codd_jax.compilation import compile_ahead, default_folder, enable_compilation_cache
from codd_jax.decoding.loop import run_block

SCRIPT = """
from codd_jax.compilation import enable_compilation_cache
folder = enable_compilation_cache()
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(folder)
"""


def test_programs_are_kept_in_a_folder_that_only_the_user_reads(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
    root = pathlib.Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    folder = tmp_path / "codd_jax" / "xla"
    assert done.stdout.strip() == str(folder) and any(folder.iterdir())
    assert folder.stat().st_mode & 0o077 == 0


@pytest.fixture
def no_folder():
    """No folder chosen, and what was chosen put back."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("no_folder")
def test_the_cache_can_be_off_and_a_folder_that_cannot_be_made_is_a_warning(tmp_path, monkeypatch):
    jax.config.update("jax_enable_compilation_cache", False)
    assert enable_compilation_cache(tmp_path / "off") is None and not (tmp_path / "off").exists()
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "chosen"))
    assert enable_compilation_cache(tmp_path / "default") == tmp_path / "chosen"
    jax.config.update("jax_compilation_cache_dir", None)
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="compiled programs are not kept .*JAX_COMPILATION_CACHE_DIR"):
        assert enable_compilation_cache(tmp_path / "file" / "below") is None
    monkeypatch.setattr(os, "getuid", lambda: -1)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert enable_compilation_cache(tmp_path) is None
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == pathlib.Path.home() / ".cache" / "codd_jax" / "xla"


@pytest.fixture(scope="module")
def model():
    small = {"num_layers": 1, "width": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "ffn_width": 16}
    ids = {"vocab_size": 32, "mask_id": 31, "eos_id": 30, "pad_id": 30}
    backbone = Transformer(dataclasses.replace(PRESETS["llada-1m"], **small, **ids), rngs=nnx.Rngs(0))
    return CoDD(backbone)


@pytest.mark.parametrize(("cache", "prompts"), [("none", [[1, 2, 3], [4] * 60, [5, 6]]), ("dual", [[1, 2], [3]])])
def test_programs_made_ahead_are_those_that_generation_runs(model, cache, prompts):
    config = DecodeConfig(steps=4, gen_length=8, block_length=4, cache=cache, stop_at_eos=False)
    before = run_block._cache_size()
    widths = compile_ahead(model, config, [len(prompt) + 8 for prompt in prompts], rows=2, progress=False)
    assert widths == sorted({-(-(len(prompt) + 8) // 64) * 64 for prompt in prompts})
    made = run_block._cache_size()
    assert made == before + len(widths)
    model.generate(prompts, config, batch_size=2)
    assert run_block._cache_size() == made


def test_nothing_to_compile_is_an_error(model):
    for lengths, rows in (([], 1), ([8], 0), ([0], 1)):
        with pytest.raises(ValueError, match="at least one of each"):
            compile_ahead(model, DecodeConfig(), lengths, rows=rows)
