"""The decoding loops fed with logit tables against the published loops, canvas by canvas."""

import numpy as np
import pytest

from codd_jax import decoding
from tests.oracles import goldens, tables

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def loops(fixtures_dir):
    cases, arrays = goldens.load(fixtures_dir / "decode_loops", "loops.npz", "loops_cases.json")
    return {case["name"]: case for case in cases}, arrays


def run(case, arrays, whole):
    """Step by step, and with `whole` by the loop on the device, too."""
    name, config = case["name"], goldens.decode_config(case)
    family = "llada" if case["loop"] == "llada" else "dream"
    strategy, numbers = config.split(family=family, mask_id=case["mask_id"])
    guided = config.cfg_scale > 0
    if family == "llada":
        prompt = arrays[f"{name}__prompt"]
        params = {"logits": arrays[f"{name}__logits"].astype(np.float32)}
        if guided:
            params["uncond"] = arrays[f"{name}__uncond_logits"].astype(np.float32)
    else:
        prompt = arrays["dream__prompt"]
        logits = arrays["dream__logits"].astype(np.float32)
        params = {"logits": np.concatenate([logits[:, :1], logits[:, :-1]], axis=1)}
    canvas = decoding.make_canvas(prompt.tolist(), config.gen_length, case["mask_id"], pad_id=0)
    denoiser = tables.TableDenoiser(guided)
    seen, _ = tables.trajectory(denoiser, params, canvas, strategy, numbers)
    golden = arrays[f"{name}__trajectory"]
    np.testing.assert_array_equal(seen[:, 0], golden, err_msg=name)
    last = seen[-1, 0]
    if whole:
        last = np.asarray(decoding.decode(denoiser, params, canvas, strategy, numbers).tokens)[0]
        np.testing.assert_array_equal(last, golden[-1], err_msg=name)
    assert int((last == case["mask_id"]).sum()) == case["mask_left"]


@pytest.mark.parametrize("index", range(16))
def test_llada(loops, index):
    cases, arrays = loops
    names = [name for name, case in cases.items() if case["loop"] == "llada"]
    assert len(names) == 16
    run(cases[names[index]], arrays, whole=index % 5 == 0)


@pytest.mark.parametrize("index", range(20))
def test_dream(loops, index):
    cases, arrays = loops
    names = [name for name, case in cases.items() if case["loop"] != "llada"]
    assert len(names) == 20
    run(cases[names[index]], arrays, whole=index % 5 == 0)
