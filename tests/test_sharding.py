"""Meshes and partition rules on eight emulated devices: the logits do not depend on how many devices share the work."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from codd_jax.backbones import PRESETS
from codd_jax.circuits import HMM
from codd_jax.sharding import (
    backbone_sharding,
    batch_sharding,
    circuit_sharding,
    make_mesh,
    partition_spec,
    replicated,
)

# Devices can be emulated only before JAX starts, so the comparison runs in a process of its own.
EIGHT_DEVICES = """
import dataclasses, tempfile, warnings
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
from flax import nnx
from codd_jax.backbones import PRESETS, Transformer
from codd_jax.io.safetensors import SafetensorsFolder, load_backbone, save_huggingface
from codd_jax.sharding import backbone_sharding, batch_sharding, make_mesh

reads = []
class Watched(SafetensorsFolder):
    def read_slice(self, name, index):
        part = super().read_slice(name, index)
        reads.append((name, part.shape))
        return part

def check(config, axes, even, layouts=("stacked", "unrolled")):
    original = Transformer(config, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (4, 12)).astype(np.int32)
    lengths = np.array([12, 7, 1, 9], np.int32)
    graphdef, params = nnx.split(original)
    expected = jax.jit(lambda params: nnx.merge(graphdef, params)(tokens, lengths))(params)
    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(original, config, folder)
        mesh = make_mesh(axes)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sharding = backbone_sharding(config, mesh)
        said = [str(w.message) for w in caught]
        assert len(said) == (0 if even else 1), said
        for layout in layouts:
            reads.clear()
            loaded = load_backbone(Watched(folder), config, sharding=sharding, layout=layout, progress=False)
            size = mesh.shape["model"]
            gate = [shape for name, shape in reads if name.endswith(("gate_proj.weight", "ff_proj.weight"))]
            assert set(gate) == {(config.ffn_width // size, config.width)}, gate
            assert len(gate) == config.num_layers * size
            for path, param in nnx.to_flat_state(nnx.state(loaded)):
                wanted = sharding(path, param.shape)
                assert param[...].sharding.is_equivalent_to(wanted, param.ndim), (path, param[...].sharding, wanted)
            graphdef, params = nnx.split(loaded)
            rows = batch_sharding(mesh)
            run = jax.jit(lambda params, tokens, lengths: nnx.merge(graphdef, params)(tokens, lengths))
            logits = run(params, jax.device_put(tokens, rows), jax.device_put(lengths, rows))
            assert len(logits.sharding.device_set) == mesh.size
            np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)
            with tempfile.TemporaryDirectory() as again:
                save_huggingface(loaded, config, again)
                first, second = SafetensorsFolder(folder), SafetensorsFolder(again)
                assert all(first.read(n).tobytes() == second.read(n).tobytes() for n in first.names())

small = dict(num_layers=2, width=64, ffn_width=96, vocab_size=128, mask_id=127, eos_id=126, pad_id=126)
llada = dataclasses.replace(PRESETS["llada-1m"], head_dim=8, **small)
check(llada, "data:2,model:4", even=True)
check(llada, "model:8", even=True, layouts=("stacked",))
options = dict(qkv_bias=True, out_bias=True, norm_bias=True, head_bias=True, qk_norm=True)
check(dataclasses.replace(llada, **options), {"model": 4}, even=True, layouts=("unrolled",))
dream = dataclasses.replace(PRESETS["dream-1m"], head_dim=8, **small)
check(dream, "data:2,model:4", even=False, layouts=("stacked",))
print("equal")
"""


def test_sharded_logits_equal_unsharded_ones():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    root = pathlib.Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", EIGHT_DEVICES]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("equal"), done.stderr[-3000:]


@pytest.mark.parametrize(
    ("path", "rank", "expected"),
    [
        (("embed", "weight"), 2, P("model", None)),
        (("blocks", "q", "weight"), 3, P(None, "model", None)),
        (("blocks", 5, "q", "weight"), 2, P("model", None)),
        (("blocks", "down", "weight"), 3, P(None, None, "model")),
        (("blocks", "k", "bias"), 2, P(None, "model")),
        (("blocks", "o", "bias"), 2, P()),
        (("blocks", "attn_norm", "weight"), 2, P()),
        (("head", "weight"), 2, P("model", None)),
    ],
)
def test_rules(path, rank, expected):
    assert partition_spec(path, rank, PRESETS["llada-8b"], 8) == expected


def test_what_does_not_divide_is_replicated_and_said_once():
    mesh = make_mesh("model:1")
    assert backbone_sharding(PRESETS["dream-7b"], mesh)(("head", "weight"), (1, 1)).spec == P("model", None)
    assert partition_spec(("blocks", "k", "weight"), 3, PRESETS["dream-7b"], 8) == P()
    assert partition_spec(("blocks", "gate", "weight"), 3, PRESETS["dream-7b"], 8) == P(None, "model", None)


def test_meshes_are_read_from_strings_and_dicts():
    assert make_mesh(None) is None and backbone_sharding(PRESETS["dream-7b"], None) is None
    assert batch_sharding(None) is None and replicated(None) is None
    mesh = make_mesh(" data:1 , model:1 ", devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "model": 1} == dict(make_mesh({"model": 1}).shape)
    assert batch_sharding(mesh).spec == P("data") and replicated(mesh).spec == P()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("data=2", "is not of the form"),
        ("data:2,data:1", "is not of the form"),
        ("model:x", "is not of the form"),
        ("pipe:2", "axis pipe is unknown; the axes are data and model"),
        ("data:0", "must be at least 1"),
        ("data:64,model:64", "needs 4096 devices and there are"),
    ],
)
def test_bad_meshes_are_refused(spec, said):
    with pytest.raises(ValueError, match=said):
        make_mesh(spec)


def test_emissions_are_split_over_the_vocabulary():
    hmm = HMM(*map(np.zeros, ((3,), (3, 3), (3, 8))), length=4)
    mesh = make_mesh("model:1")
    placed = jax.device_put(hmm, circuit_sharding(hmm, mesh))
    assert placed.emission.sharding.spec == P(None, "model")
    assert placed.transition.sharding.spec == placed.initial.sharding.spec == P()
    untied = HMM(*map(np.zeros, ((3,), (3, 3, 3), (4, 3, 8))), length=4)
    assert circuit_sharding(untied, mesh).emission.spec == P(None, None, "model")
    assert circuit_sharding(hmm, None) is None


def test_a_circuit_whose_vocabulary_does_not_divide_is_replicated():
    hmm = HMM(*map(np.zeros, ((3,), (3, 3), (3, 9))), length=4)
    mesh = AbstractMesh((1, 2), ("data", "model"))
    with pytest.warns(UserWarning, match="model axis of 2 does not divide the circuit's vocabulary of 9"):
        assert circuit_sharding(hmm, mesh).emission.spec == P()
