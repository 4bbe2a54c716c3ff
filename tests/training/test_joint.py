"""Joint fine-tuning: its objective against windows scored one by one, what moves, accumulation, resuming, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax import CoDD
from codd_jax.backbones import PRESETS, Transformer
from codd_jax.backbones.low_rank import has_lora
from codd_jax.circuits import HMM, conditional_log_likelihood
from codd_jax.training import joint
from codd_jax.training.dataset import Example
from codd_jax.training.joint import joint_finetune
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.joint_parts import take_apart
from codd_jax.training.joint_rows import RowSource
from codd_jax.training.joint_step import MaskedRows, window_log_likelihoods
from codd_jax.training.lora import LoraConfig
from codd_jax.training.rows import lay_out

WINDOW, VOCAB = 4, 24
SMALL = {
    "vocab_size": VOCAB, "width": 8, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4,
    "ffn_width": 12, "mask_id": 23, "eos_id": 22, "pad_id": 22,
}  # fmt: skip
CONFIGS = {name: dataclasses.replace(PRESETS[f"{name}-1m"], **SMALL) for name in ("llada", "dream")}


def make_model(family="llada", layout="unrolled"):
    """A random backbone with a random circuit."""
    rng = np.random.default_rng(1)
    graphdef, state = nnx.split(Transformer.abstract(CONFIGS[family], layout=layout))
    fill = lambda x: jnp.asarray(rng.normal(size=x.shape) * x.shape[-1] ** -0.5, x.dtype)  # noqa: E731
    return CoDD(nnx.merge(graphdef, jax.tree.map(fill, state)), HMM.random(jax.random.key(2), WINDOW, 3, VOCAB))


def make_rows(count=12, seed=0):
    """Solutions that repeat their first token: easy to learn."""
    rng = np.random.default_rng(seed)
    examples = [
        Example(tuple(rng.integers(0, 20, 3).tolist()), (int(token),) * int(rng.integers(2, 7)))
        for token in rng.integers(0, 20, count)
    ]
    return lay_out(examples, WINDOW, 22, 22, bucket=4)


def recipe(**changes):
    """Four updates of four rows, without rematerialisation: programs that compile fast."""
    base = {"steps": 4, "batch_size": 4, "backbone_rate": 0.01, "circuit_rate": 0.05, "remat": False}
    base |= {"train": "full", "validate_every": 2, "save_every": 2}
    return JointTraining(**(base | changes))


def run(model=None, **options):
    options = {"rows": make_rows(), "config": recipe(), "progress": False} | options
    return joint_finetune(model or make_model(), options.pop("rows"), options.pop("config"), **options)


def weights(tuned):
    """All parameters of a tuned model by name, on the host."""
    flat = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(tuned.model.backbone))}
    return jax.device_get(flat | {name: getattr(tuned.model.hmm, name) for name in ("initial", "emission")})


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_the_objective_is_that_of_each_window_by_itself(family):
    model, rows = make_model(family), make_rows(3)
    starts = np.full((3, 2), -1, np.int32)
    for row in range(3):  # Dream's windows lie anywhere in the solution
        found = np.arange(rows.prompt_lengths[row], rows.lengths[row] - WINDOW + 1, WINDOW)
        starts[row, : len(found)] = found if family == "llada" else np.minimum(found + 1, rows.lengths[row] - WINDOW)
    rng = np.random.default_rng(0)
    inside = np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
    inside &= np.arange(rows.tokens.shape[1]) >= rows.prompt_lengths[:, None]
    masked = (rng.random(rows.tokens.shape) < 0.6) & inside
    noisy = np.where(masked, 23, rows.tokens)
    log_phi = jax.nn.log_softmax(model.backbone(jnp.asarray(noisy), jnp.asarray(rows.lengths)))
    batch = MaskedRows(noisy, rows.tokens, masked, rows.lengths, starts)
    factorised, coupled, _ = jax.jit(lambda: window_log_likelihoods(model.backbone, model.hmm, batch, WINDOW))()
    assert (starts >= 0).sum() > 3
    for row, window in np.ndindex(*starts.shape):
        first = starts[row, window]
        if first < 0:
            assert factorised[row, window] == 0 and abs(coupled[row, window]) < 1e-5
            continue
        part = slice(first, first + WINDOW)
        tokens, hidden = rows.tokens[row, part], masked[row, part]
        alone = sum(log_phi[row, first + t, tokens[t]] for t in range(WINDOW) if hidden[t])
        both = conditional_log_likelihood(model.hmm, log_phi[row, part], tokens, ~hidden)
        np.testing.assert_allclose(factorised[row, window], alone, rtol=0, atol=1e-4)
        np.testing.assert_allclose(coupled[row, window], both, rtol=0, atol=1e-4)


def test_accumulated_parts_make_the_update_of_the_whole_batch():
    whole, parts = (weights(run(config=recipe(accumulate=n, weighting="1/t", warmup=1))) for n in (1, 2))
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("options", "moving"),
    [
        ({"train": "lora", "lora": LoraConfig(2, targets="q|down")}, (".lora.", "initial", "emission")),
        ({"train": "head", "train_circuit": False}, ("head.",)),
        ({"train": "none"}, ("initial", "emission")),
    ],
)
def test_only_what_is_trained_moves(options, moving):
    model = make_model()
    tuned = run(model, config=recipe(**options))
    before = weights(joint.Tuned(model, [], {}))
    assert has_lora(tuned.model.backbone) == (options["train"] == "lora")
    for name, value in weights(tuned).items():
        if name in before:
            moved = np.abs(value - before[name]).max() > 1e-5
            assert moved == any(part in name or part == name for part in moving), name
    assert set(tuned.trained) == {"backbone", "circuit"} - ({"backbone"} if options["train"] == "none" else set()) - (
        {"circuit"} if not options.get("train_circuit", True) else set()
    )


def test_both_learn_and_the_given_model_stays_as_it_was():
    model = make_model()
    before = weights(joint.Tuned(model, [], {}))
    config = recipe(steps=60, backbone_rate=0.05, validate_every=30, save_every=60, circuit_schedule="constant")
    tuned = run(model, validation=make_rows(), config=config)
    first, last = tuned.history[0], tuned.history[-1]
    assert [point.step for point in tuned.history] == [0, 30, 60] and first.held_out
    assert last.coupled < first.coupled - 0.5 and last.backbone < first.backbone - 0.2
    assert first.tokens == last.tokens, "validation hides the same tokens every time"
    jax.tree.map(np.testing.assert_array_equal, weights(joint.Tuned(model, [], {})), before)


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "interrupted"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch, killed):
    config = recipe(steps=8, save_every=4, validate_every=3, train="lora", lora=LoraConfig(2, targets="v"))
    options = {"config": config, "validation": make_rows(5, seed=1)}
    straight = run(**options, folder=tmp_path / "straight")
    draw = RowSource.batch

    def stop(source, step):
        if step == 5:
            raise RuntimeError("killed") if killed else KeyboardInterrupt
        return draw(source, step)

    monkeypatch.setattr(RowSource, "batch", stop)
    with pytest.raises(
        RuntimeError if killed else KeyboardInterrupt, match="killed" if killed else "after step 5 of 8"
    ):
        run(**options, folder=tmp_path / "stopped")
    asked = []
    monkeypatch.setattr(RowSource, "batch", lambda source, step: asked.append(step) or draw(source, step))
    resumed = run(**options, folder=tmp_path / "stopped")
    assert asked == list(range(4 if killed else 5, 8))
    jax.tree.map(np.testing.assert_array_equal, weights(resumed), weights(straight))
    for one, other in zip(resumed.history, straight.history, strict=True):
        assert dataclasses.replace(one, seconds=0) == dataclasses.replace(other, seconds=0)
    with pytest.raises(ValueError, match=r"other settings:\n  backbone_rate: 0\.01 before, 0\.02 now"):
        run(**options | {"config": dataclasses.replace(config, backbone_rate=0.02)}, folder=tmp_path / "stopped")


def test_a_diverging_run_names_its_step_and_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    # The recipe of a test above, whose program is there already.
    config, step = recipe(accumulate=2, weighting="1/t", warmup=1), joint.update

    def poisoned(state, *rest):
        if int(state.step) == 2:
            state = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
        return step(state, *rest)

    monkeypatch.setattr(joint, "update", poisoned)
    with pytest.raises(FloatingPointError, match=r"step 3: loss, .*not finite.*lower the learning rates"):
        run(config=config, folder=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").glob("step_*") if path.is_dir()] == ["step_00000002"]


def test_master_weights_are_wider_than_the_computation():
    model = make_model()
    structure, params, frozen = take_apart(model.backbone, model.hmm, recipe(dtype="bfloat16", train="full"))
    backbone = structure.backbone(params, frozen)
    assert backbone.dtype == jnp.bfloat16 and backbone.encode(jnp.zeros((1, 5), jnp.int32)).dtype == jnp.bfloat16
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": "some"}, "train is 'some'; it must be one of full, lora, head, none"),
        ({"accumulate": 3}, "4 rows cannot be worked through in 3 equal parts"),
        ({"warmup": 4}, "must end before the last of 4 steps"),
        ({"train": "none", "train_circuit": False}, "trains nothing"),
        ({"clip_norm": 0}, "clip_norm is 0"),
        ({"circuit_rate": float("nan")}, "circuit_rate is nan"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        recipe(**options)


def test_parts_that_do_not_fit_are_refused():
    model, rows = make_model(), make_rows()
    with pytest.raises(ValueError, match="needs a circuit and the model has none"):
        run(CoDD(model.backbone))
    with pytest.raises(ValueError, match="windows of 2 tokens and the circuit covers 4"):
        run(rows=rows.replace(window=2))
    with pytest.raises(ValueError, match="token 24 and the backbone's vocabulary has 24"):
        run(rows=rows.replace(tokens=np.where(rows.tokens == 22, 24, rows.tokens)))
    with pytest.raises(ValueError, match="no rows"):
        run(rows=[])
    with pytest.raises(ValueError, match=r"unlike|windows of \[2, 4\]"):
        run(rows=[rows, rows.replace(window=2)])
    tied = dataclasses.replace(CONFIGS["llada"], tie_embeddings=True)
    with pytest.raises(ValueError, match="head of this backbone is its embedding"):
        take_apart(Transformer(tied, rngs=nnx.Rngs(0)), None, recipe(train="head", objective="factorised"))


def test_every_row_comes_once_an_epoch():
    rows = make_rows(8)
    source = RowSource([rows], batch_size=4, seed=3)
    drawn = [source.batch(step) for step in range(4)]
    for epoch in (drawn[:2], drawn[2:]):
        seen = np.sort(np.concatenate([batch.rows.tokens for batch in epoch]), axis=0)
        np.testing.assert_array_equal(seen, np.sort(rows.tokens, axis=0))
    again = RowSource([rows], batch_size=4, seed=3).batch(3)
    jax.tree.map(np.testing.assert_array_equal, again, drawn[3])
    for batch in drawn:
        assert ((batch.starts >= 0).sum(1) == batch.rows.num_windows).all()


def test_offsets_move_windows_of_unaligned_sources():
    rows = make_rows(8)
    moved = RowSource([rows], batch_size=8, aligned=False, seed=0).batch(0)
    offsets = (moved.starts - np.asarray(moved.rows.prompt_lengths)[:, None])[moved.starts >= 0]
    assert (offsets % WINDOW != 0).any() and (offsets >= 0).all()
    ends = moved.starts.max(1) + WINDOW
    assert (ends <= moved.rows.lengths).all()
