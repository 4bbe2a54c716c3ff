"""The model as users hold it: loading, generating, filling in, scoring, saving, and what it refuses."""

import itertools
import json
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import codd_jax
from codd_jax import CoDD, DecodeConfig
from codd_jax.io.circuit import save_circuit

CONFIG = DecodeConfig(steps=16, gen_length=32, block_length=16, pc_frac=None)
PROMPTS = ["What is 7 + 5?", "Hi", "Solve x + 3 = 9."]


@pytest.fixture(scope="module")
def circuit():
    return codd_jax.HMM.random(jax.random.key(0), length=16, num_states=8, vocab_size=384, scale=2.0)


@pytest.fixture(scope="module")
def plain(fixtures_dir):
    return CoDD.from_pretrained(fixtures_dir / "llada_tiny", dtype="float32", progress=False)


@pytest.fixture(scope="module")
def coupled(plain, circuit):
    return CoDD(plain.backbone, circuit, plain.tokenizer)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_prompt_decodes_alike_alone_in_any_batch_and_in_any_order(coupled, temperature):
    config = DecodeConfig(steps=16, gen_length=32, block_length=16, pc_frac=None, temperature=temperature)
    together = coupled.generate(PROMPTS, config, seed=5, batch_size=2)
    backwards = coupled.generate(PROMPTS[::-1], config, seed=5, batch_size=2)
    alone = coupled.generate(PROMPTS[1], config, seed=5)
    for row, ids in enumerate(together.tokens):
        np.testing.assert_array_equal(backwards.tokens[2 - row], ids)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[1])
    assert together.text[1] == alone.text[0]


def test_samples_of_a_prompt_differ_and_come_side_by_side(coupled):
    config = DecodeConfig(steps=16, gen_length=32, block_length=16, pc_frac=None, temperature=1.0, num_samples=2)
    out = coupled.generate(PROMPTS[:2], config, seed=1, batch_size=2)
    first = coupled.generate(PROMPTS[0], config, seed=1)
    assert len(out.tokens) == 4 and not np.array_equal(out.tokens[0], out.tokens[1])
    np.testing.assert_array_equal(out.tokens[1], first.tokens[1])


def test_streaming_ends_where_generating_does(coupled):
    parts = list(coupled.stream(PROMPTS[:2], CONFIG, seed=2))
    whole = coupled.generate(PROMPTS[:2], CONFIG, seed=2)
    assert len(parts) == 2
    assert [len(part.tokens[0]) for part in parts] == [16, 32]
    np.testing.assert_array_equal(parts[-1].tokens[1], whole.tokens[1])
    assert whole.text[1].startswith(parts[0].text[1])


def test_stop_strings_end_rows_early(plain):
    full = plain.generate(PROMPTS[:2], CONFIG)
    stop = full.text[1][1]
    out = plain.generate(PROMPTS[:2], CONFIG, stop_strings=[stop])
    assert out.text[1] == full.text[1].split(stop)[0]
    assert out.steps_used[1] == 8 < full.steps_used[1]
    assert len(out.tokens[1]) == 16  # what was never decoded is no token


def test_steps_count_forward_passes(plain):
    out = plain.generate(PROMPTS[0], CONFIG)
    assert out.steps_used.tolist() == [16]
    assert out.tokens_per_forward == pytest.approx(2.0)


def test_a_text_shorter_than_the_window_is_coupled_too(coupled):
    out = coupled.generate([[5, 6, 7]], DecodeConfig(steps=4, gen_length=8, block_length=8, pc_frac=None))
    assert len(out.tokens[0]) == 8 and 304 not in out.tokens[0] and out.pc_failures.tolist() == [0]


def test_infill_keeps_the_text_around_its_holes(coupled):
    text = "The answer is <mask:5>, and then <mask> more words follow."
    out = coupled.infill(text, CONFIG)
    before, after = "The answer is ", " more words follow."
    ids = coupled.tokenizer(before)["input_ids"]
    assert out.tokens[0][: len(ids)].tolist() == ids
    assert 304 not in out.tokens[0]
    assert out.text[0].endswith(after)
    assert out.steps_used.tolist() == [6]
    alone = coupled.infill(text, DecodeConfig(steps=16, gen_length=32, coupling="none"))
    assert 304 not in alone.tokens[0]
    with pytest.raises(ValueError, match="holds no mask id"):
        coupled.infill([5, 6, 7])


def test_factorized_and_coupled_likelihood_by_hand(plain, coupled, circuit):
    prompt, completion = list(range(40, 60)), [7, 9, 11, 13]
    got = coupled.log_likelihood(prompt, completion, num_samples=1)
    masked = jnp.asarray([prompt + [304] * 4])
    log_phi = jax.nn.log_softmax(plain.backbone(masked)[0, -16:])
    assert got.factorized == pytest.approx(float(log_phi[jnp.arange(12, 16), jnp.asarray(completion)].sum()), abs=1e-4)
    tokens = jnp.asarray((prompt + completion)[-16:])
    known = jnp.arange(16) < 12
    expected = codd_jax.circuits.conditional_log_likelihood(circuit, log_phi, tokens, known)
    assert got.coupled == pytest.approx(float(expected), abs=1e-4)
    assert got.num_tokens == 4


def test_a_circuit_that_says_nothing_changes_no_likelihood(plain):
    uniform = codd_jax.HMM.from_logits(jnp.zeros(2), jnp.zeros((2, 2)), jnp.zeros((2, 384)), length=16)
    got = CoDD(plain.backbone, uniform, None).log_likelihood(list(range(20, 60)), list(range(5, 25)), num_samples=4)
    assert got.coupled == pytest.approx(got.factorized, abs=1e-3)
    assert got.coupled_bound == pytest.approx(got.bound, abs=1e-3)


def test_the_bound_estimates_its_exact_value(plain):
    prompt, completion = list(range(40, 60)), [7, 9, 11]
    exact = 0.0
    for size in (1, 2, 3):
        subsets = list(itertools.combinations(range(3), size))
        for subset in subsets:
            row = prompt + [304 if i in subset else token for i, token in enumerate(completion)]
            logits = np.asarray(plain.backbone(jnp.asarray([row]))[0], np.float64)
            for i in subset:
                at = logits[20 + i]
                shifted = at - at.max()
                exact += (shifted[completion[i]] - np.log(np.exp(shifted).sum())) * 3 / size / len(subsets) / 3
    got = plain.log_likelihood(prompt, completion, num_samples=192, batch_size=64)
    assert abs(got.bound - exact) < 4 * got.bound_error
    assert got.coupled is None and got.coupled_bound is None


def test_saving_and_loading_gives_the_same_model(coupled, plain, tmp_path):
    expected = coupled.generate(PROMPTS[:2], CONFIG, seed=3)
    coupled.save_pretrained(tmp_path / "both")
    both = CoDD.from_pretrained(tmp_path / "both", dtype="float32", progress=False)
    again = both.generate(PROMPTS[:2], CONFIG, seed=3)
    for old, new in zip(expected.tokens, again.tokens, strict=True):
        np.testing.assert_array_equal(old, new)
    assert again.text == expected.text
    with pytest.raises(FileExistsError, match="exists already"):
        coupled.save_pretrained(tmp_path / "both")
    plain.save_pretrained(tmp_path / "plain")
    assert CoDD.from_pretrained(tmp_path / "plain", dtype="float32", progress=False).hmm is None


class FakeHub:
    """Stands in for the hub's upload calls and keeps what would have been sent."""

    def __init__(self, keep, token=None):
        self.keep, self.token, self.created = keep, token, []

    def create_repo(self, repo_id, private, exist_ok):
        self.created.append((repo_id, private, exist_ok))

    def upload_folder(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.keep)
        return f"https://huggingface.co/{repo_id}/commit/1 ({commit_message})"


def test_push_to_hub_uploads_a_loadable_model_with_a_card(coupled, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path / "sent")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: hub)
    address = coupled.push_to_hub("someone/llada-tiny-codd", private=True)
    assert hub.created == [("someone/llada-tiny-codd", True, True)]
    assert address.startswith("https://huggingface.co/someone/llada-tiny-codd")
    card = (tmp_path / "sent" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: codd_jax\n") and 'from_pretrained("someone/llada-tiny-codd")' in card
    assert "8 states over 16 tokens" in card and str(tmp_path) not in card
    sent = CoDD.from_pretrained(tmp_path / "sent", dtype="float32", progress=False)
    assert sent.hmm.length == 16


def test_a_refused_push_says_why(coupled, monkeypatch):
    class Refusing(FakeHub):
        def create_repo(self, *_, **__):
            raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: Refusing(None))
    with pytest.raises(ConnectionError, match=r"someone/model.*cannot be reached"):
        coupled.push_to_hub("someone/model")


def test_a_circuit_for_another_backbone_is_refused_before_weights_are_read(fixtures_dir, tmp_path):
    save_circuit(tmp_path / "vocab", codd_jax.HMM.random(jax.random.key(0), 16, 4, 320))
    with pytest.raises(ValueError, match="over 320 tokens and the llada backbone over 384"):
        CoDD.from_pretrained(fixtures_dir / "llada_tiny", tmp_path / "vocab", dtype="float32")
    save_circuit(tmp_path / "mask", codd_jax.HMM.random(jax.random.key(0), 16, 4, 384), {"mask_id": 5})
    with pytest.raises(ValueError, match="mask id 5 and the backbone's is 304"):
        CoDD.from_pretrained(fixtures_dir / "llada_tiny", tmp_path / "mask", dtype="float32")


def test_published_defaults_are_taken_over(fixtures_dir, tmp_path):
    folder = tmp_path / "unified"
    shutil.copytree(fixtures_dir / "llada_tiny", folder)
    settings = {"num_steps": 12, "gen_length": 24, "block_length": 8, "pc_temperature": 0.1, "pc_frac": 0.7}
    (folder / "codd_config.json").write_text(json.dumps(settings))
    model = CoDD.from_pretrained(folder, dtype="float32", progress=False)
    assert (model.defaults.steps, model.defaults.gen_length, model.defaults.pc_temperature) == (12, 24, 0.1)
    assert len(model.generate("Hi").tokens[0]) <= 24


def test_configurations_that_do_not_fit_are_refused(coupled, plain):
    with pytest.raises(ValueError, match="block_length is 32 but the circuit covers windows of 16"):
        coupled.generate("Hi", DecodeConfig(steps=32, gen_length=64, block_length=32))
    with pytest.raises(ValueError, match="exceeds the limit"):
        plain.generate("Hi", DecodeConfig(steps=256, gen_length=200_000))
    with pytest.warns(UserWarning, match="exceeds the checkpoint's context of 256"):
        plain.generate([[5, 6, 7]], DecodeConfig(steps=8, gen_length=256, block_length=32))
    with pytest.raises(ValueError, match="batch_size is 0"):
        plain.generate("Hi", CONFIG, batch_size=0)
    with pytest.raises(ValueError, match="without a tokenizer"):
        CoDD(plain.backbone).generate("Hi", CONFIG)


def test_nan_logits_are_an_error_not_text(plain):
    broken = jax.tree.map(lambda x: x * jnp.nan, plain.params)
    model = CoDD(plain.backbone, None, plain.tokenizer)
    model.params = broken
    with pytest.raises(FloatingPointError, match="NaN"):
        model.generate("Hi", CONFIG)
