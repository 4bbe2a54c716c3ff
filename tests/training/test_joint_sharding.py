"""Joint fine-tuning on eight emulated devices: the weights do not depend on how many devices share the work."""

import os
import pathlib
import subprocess
import sys

# Devices can be emulated only before JAX starts, so the comparison runs in a process of its own.
EIGHT_DEVICES = """
import dataclasses, tempfile
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_default_matmul_precision", "highest")
from flax import nnx
from codd_jax import CoDD
from codd_jax.backbones import PRESETS, Transformer
from codd_jax.circuits import HMM
from codd_jax.sharding import make_mesh
from codd_jax.training.dataset import Example
from codd_jax.training.joint import joint_finetune
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.joint_parts import take_apart
from codd_jax.training.joint_rows import RowSource
from codd_jax.training.joint_step import start
from codd_jax.training.rows import lay_out

assert jax.device_count() == 8
config = dataclasses.replace(
    PRESETS["llada-1m"], vocab_size=24, width=16, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=4, ffn_width=16,
    mask_id=23, eos_id=22, pad_id=22,
)
rng = np.random.default_rng(1)
graphdef, state = nnx.split(Transformer.abstract(config))
state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * x.shape[-1] ** -0.5, x.dtype), state)
model = CoDD(nnx.merge(graphdef, state), HMM.random(jax.random.key(2), 4, 4, 24))
examples = [Example(tuple(rng.integers(0, 20, 3).tolist()), (int(t),) * 4) for t in rng.integers(0, 20, 16)]
rows = lay_out(examples, 4, 22, 22, bucket=4)
training = JointTraining(steps=4, batch_size=8, train="full", backbone_rate=0.003, circuit_rate=0.01, remat=False)
training = dataclasses.replace(training, save_every=2, validate_every=4)

def weights(tuned):
    return jax.device_get((nnx.to_pure_dict(nnx.state(tuned.model.backbone)), tuned.model.hmm))

def tune(mesh, over_data=False, **options):
    recipe = dataclasses.replace(training, shard_over_data=over_data)
    return weights(joint_finetune(model, rows, recipe, mesh=mesh, progress=False, **options))

def same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)

alone = tune(None)
by_rows, both = make_mesh("data:8"), make_mesh("data:2,model:4")
same(tune(by_rows), alone)

draw = RowSource.batch
def stop(source, step):
    if step == 3:
        raise RuntimeError("killed")
    return draw(source, step)

with tempfile.TemporaryDirectory() as folder:
    RowSource.batch = stop
    try:
        tune(by_rows, folder=folder)
    except RuntimeError:
        RowSource.batch = draw
    same(tune(both, True, folder=folder), alone)  # from the second step on, on other devices

for over_data in (False, True):
    recipe = dataclasses.replace(training, shard_over_data=over_data)
    structure, params, frozen = take_apart(model.backbone, model.hmm, recipe, both)
    state = start(params, recipe, structure, both)
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    found = {jax.tree_util.keystr(path): x.sharding.spec for path, x in flat}
    for name, end in (("weight", "['blocks.gate.weight']"), ("emission", "['circuit'].emission")):
        specs = {tuple(spec) for path, spec in found.items() if path.endswith(end)}
        count = sum(path.endswith(end) for path in found)
        spread = {"weight": (None, "model", "data"), "emission": ("data", "model")}
        wanted = (spread if over_data else {"weight": (None, "model"), "emission": (None, "model")})[name]
        assert count == 3 and specs == {wanted}, (name, count, specs)  # weights and both moments
print("equal")
"""


def test_devices_do_not_change_what_is_learnt():
    # Little optimisation: the programs are small, and compiling them is what takes time.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    root = pathlib.Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", EIGHT_DEVICES]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("equal"), done.stderr[-3000:]
