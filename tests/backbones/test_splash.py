"""Splash attention, interpreted without a TPU, against XLA's: lengths, grouped heads, gradients, many devices."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax import CoDD
from codd_jax.backbones import PRESETS, Transformer
from codd_jax.backbones.attention import attend, choose_implementation
from codd_jax.backbones.low_rank import has_lora, merge_lora
from codd_jax.backbones.splash import splash_attend
from codd_jax.io.checkpoint import open_backbone
from codd_jax.io.safetensors import save_huggingface
from codd_jax.sharding import backbone_sharding, make_mesh
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.joint_parts import take_apart
from codd_jax.training.lora import LoraConfig, add_lora

FOUR_DEVICES = """
import jax, numpy as np
jax.config.update("jax_default_matmul_precision", "highest")
from codd_jax.sharding import make_mesh
from tests.backbones.test_splash import attend, operands, splash_attend

for spec, batch, heads in (("data:2,model:2", 2, 2), ("data:2,model:2", 3, 1), ("data:4", 4, 2)):
    *parts, lengths = operands(batch, 128, 128, 2 * heads, heads)
    mesh = make_mesh(spec)
    found = jax.jit(lambda *parts: splash_attend(*parts, mesh, interpret=True))(*parts, lengths)
    np.testing.assert_allclose(found, attend(*parts, lengths), atol=1e-5)
    pull = lambda f: jax.jit(jax.grad(lambda parts: (f(*parts) ** 2).sum()))(tuple(parts))
    wanted = pull(lambda *parts: attend(*parts, lengths))
    for one, other in zip(pull(lambda *parts: splash_attend(*parts, lengths, mesh, interpret=True)), wanted):
        np.testing.assert_allclose(one, other, atol=1e-4)
    spread = [axis for axis in found.sharding.spec if axis is not None]
    assert ("data" in spread) == (batch % mesh.shape["data"] == 0), (spec, batch, spread)
print("equal")
"""


def operands(batch, queries, keys, num_heads, num_kv_heads, dtype=jnp.float32):
    """Queries, keys, values and lengths."""
    rng = np.random.default_rng(0)
    shapes = [(batch, queries, num_heads, 128), *[(batch, keys, num_kv_heads, 128)] * 2]
    parts = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    return *parts, jnp.asarray(rng.integers(1, keys + 1, batch), jnp.int32)


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "groups"), [(256, 256, 2, 2), (130, 130, 4, 2), (128, 700, 2, 1), (5, 129, 1, 1)]
)
def test_it_agrees_with_xla(queries, keys, heads, groups):
    *parts, lengths = operands(2, queries, keys, heads, groups)
    found = splash_attend(*parts, lengths, interpret=True)
    np.testing.assert_allclose(found, attend(*parts, lengths), atol=1e-5)
    np.testing.assert_allclose(splash_attend(*parts, None, interpret=True), attend(*parts, None), atol=1e-5)


def test_bfloat16_stays_bfloat16():
    *parts, lengths = operands(1, 128, 128, 2, 2, jnp.bfloat16)
    found, wanted = splash_attend(*parts, lengths, interpret=True), attend(*parts, lengths)
    assert found.dtype == wanted.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), wanted.astype(jnp.float32), atol=0.03)


def test_a_row_without_tokens_is_finite():
    *parts, _ = operands(2, 128, 128, 1, 1)
    found = splash_attend(*parts, jnp.asarray([0, 7]), interpret=True)
    assert bool(jnp.isfinite(found).all())
    np.testing.assert_allclose(found[1], attend(*parts, jnp.asarray([0, 7]))[1], atol=1e-5)


def test_gradients_agree():
    *parts, lengths = operands(2, 130, 130, 4, 2)
    weights = jax.random.normal(jax.random.key(1), parts[0].shape)

    def pull(function):
        return jax.grad(lambda parts: jnp.sum(weights * function(*parts, lengths)))(tuple(parts))

    wanted = pull(attend)
    for found, one in zip(pull(lambda *args: splash_attend(*args, interpret=True)), wanted, strict=True):
        np.testing.assert_allclose(found, one, atol=2e-5)


def test_it_is_split_by_rows_and_heads():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", FOUR_DEVICES], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


def test_elsewhere_it_is_xla():
    for queries in (5, 130):
        *parts, lengths = operands(1, queries, 130, 2, 2)
        for ends in (lengths, None):
            np.testing.assert_array_equal(attend(*parts, ends, "splash"), attend(*parts, ends))


@pytest.mark.parametrize(
    ("name", "dtype", "head_dim", "backend", "chosen"),
    [
        ("auto", "bfloat16", 128, "tpu", "splash"),
        ("auto", "float32", 128, "tpu", "splash"),
        ("auto", "bfloat16", 64, "tpu", "xla"),
        ("auto", "float16", 128, "tpu", "xla"),
        ("auto", "bfloat16", 64, "gpu", "cudnn"),
        ("auto", "float32", 128, "gpu", "xla"),
        ("auto", "bfloat16", 128, "cpu", "xla"),
        ("xla", "bfloat16", 128, "tpu", "xla"),
    ],
)
def test_the_kernel_suits_the_device(name, dtype, head_dim, backend, chosen):
    assert choose_implementation(name, dtype, head_dim, backend) == chosen


@pytest.mark.parametrize(
    ("name", "dtype", "head_dim", "backend", "said"),
    [
        ("splash", "bfloat16", 64, "tpu", "multiple of 128; got bfloat16 and 64"),
        ("splash", "float16", 128, "tpu", "needs bfloat16 or float32"),
        ("cudnn", "bfloat16", 64, "tpu", "NVIDIA GPUs and this is for tpu"),
        ("cudnn", "float32", 64, "gpu", "needs bfloat16 or float16"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused(name, dtype, head_dim, backend, said):
    with pytest.raises(ValueError, match=said):
        choose_implementation(name, dtype, head_dim, backend)


def narrow(layout="stacked", mesh=None):
    """A backbone of two narrow blocks."""
    config = dataclasses.replace(
        PRESETS["llada-1m"], width=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, ffn_width=24,
        vocab_size=64, mask_id=63, eos_id=62, pad_id=62,
    )  # fmt: skip
    return Transformer(config, layout=layout, mesh=mesh, rngs=nnx.Rngs(0))


def known_to(backbone):
    """The meshes that a backbone's blocks would hand to the kernel."""
    blocks = [backbone.blocks] if backbone.layout == "stacked" else list(backbone.blocks)
    return [block.mesh for block in blocks]


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_the_mesh_reaches_every_block(tmp_path, layout):
    mesh = make_mesh("data:1,model:1")
    backbone = narrow(layout)
    tokens = jnp.arange(6)[None]
    other = backbone.with_options(mesh=mesh, remat=True)
    assert set(known_to(other)) == {mesh} and other.remat and set(known_to(backbone)) == {None}
    np.testing.assert_array_equal(other(tokens), backbone(tokens))
    for layout_again in ("stacked", "unrolled"):
        assert set(known_to(other.with_layout(layout_again))) == {mesh}
    tuned = add_lora(backbone, LoraConfig(rank=2), jax.random.key(0))
    served = CoDD(tuned, mesh=mesh).backbone
    assert has_lora(served) and set(known_to(served)) == {mesh}
    assert set(known_to(merge_lora(served))) == {mesh}
    structure, *parts = take_apart(backbone, None, JointTraining(steps=1, objective="factorised", train="full"), mesh)
    assert set(known_to(structure.backbone(*parts))) == {mesh}


def test_the_mesh_is_that_of_the_loaded_weights(tmp_path):
    backbone = narrow()
    save_huggingface(backbone, None, tmp_path)
    mesh = make_mesh("data:1,model:1")
    opened = open_backbone(tmp_path)
    placed = opened.load(sharding=backbone_sharding(backbone.config, mesh), progress=False)
    for loaded in (opened.load(mesh=mesh, progress=False), placed):
        assert set(known_to(loaded)) == {mesh}
    assert set(known_to(opened.load(progress=False))) == {None}
