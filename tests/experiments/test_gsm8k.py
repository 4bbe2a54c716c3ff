"""The command line of experiments/gsm8k.py: what is refused, with which words, and that nothing is loaded before."""

import json
import pathlib
import shutil

import datasets
import jax
import pytest

from codd_jax import HMM, CoDD, DecodeConfig
from codd_jax.evaluation.options import read_options
from codd_jax.io.circuit import save_circuit
from experiments import gsm8k
from tests.oracles.word_problems import QUESTIONS


def refused(capsys, *argv: str) -> str:
    """Runs the script, expects exit code 2 and one message, and returns it."""
    with pytest.raises(SystemExit) as exit_info:
        gsm8k.main(list(argv))
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def options(*argv: str):
    """The options of a command line."""
    return read_options(gsm8k.make_parser().parse_args(list(argv)), gsm8k.PRESET)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--llada_ckpt A/b --dream_ckpt A/c", "--llada_ckpt and --dream_ckpt were both given"),
        ("--llada_ckpt A/b --model_alias dream", "--model_alias dream contradicts --llada_ckpt"),
        ("--llada_ckpt A/b --alg best", "--alg is 'best'; known are low_confidence, margin"),
        ("--llada_ckpt A/b --num_steps 0", "--num_steps: '0' is not a whole number of at least 1"),
        ("--llada_ckpt A/b --num_steps 3 --gen_length 128", "--num_steps=3 for 4 blocks"),
        ("--llada_ckpt A/b --gen_length 2.5", "--gen_length: '2.5' is not a whole number"),
        ("--llada_ckpt A/b --temperature -1", "--temperature: '-1' is not a number of at least 0"),
        ("--llada_ckpt A/b --top_p 1.5", "--top_p is 1.5"),
        ("--llada_ckpt A/b --batch_size 0", "--batch_size: '0'"),
        ("--llada_ckpt A/b --limit 0", "--limit: '0'"),
        ("--llada_ckpt A/b --pc_ckpt A/p --coupling loose", "--coupling is 'loose'"),
        ("--llada_ckpt A/b --mesh data", "mesh 'data' is not of the form"),
        ("--llada_ckpt A/b --mesh data:4096", "needs 4096 devices"),
        ("--llada_ckpt A/b --task mbpp", "--task mbpp: this script evaluates gsm8k"),
        ("--llada_ckpt A/b --tag a/b", "--tag 'a/b'"),
        ("--llada_ckpt A/b --dream_window", "--dream_window is for Dream"),
        ("--dream_ckpt A/b --dream_window --dream_block", "exclude each other"),
        ("--dream_ckpt A/b --block_length 16", "add --dream_block"),
        ("--llada_ckpt A/b --data nowhere.jsonl", "no problems at nowhere.jsonl"),
        ("--llada_ckpt no/such/folder", "no/such/folder is neither an existing path nor a hub id"),
        ("--llada_ckpt A/b --problems 3", "--problems counts the demo's problems"),
        ("--pc_ckpt A/p --num_steps 8", "--num_steps, --pc_ckpt without a model"),
        ("--llada A/b", "unrecognized arguments: --llada"),
    ],
)
def test_bad_command_lines(capsys, argv, message):
    assert message in refused(capsys, *argv.split())


def test_circuit_flags_need_a_circuit(capsys, tmp_path):
    argv = ["--llada_ckpt", str(tmp_path), "--pc_temperature", "0.1", "--reverse_frac"]
    assert "--pc_temperature, --reverse_frac without a circuit" in refused(capsys, *argv)
    (tmp_path / "model.jpc").touch()
    (tmp_path / "config.json").touch()
    assert options(*argv).decoding == {"pc_temperature": 0.1, "reverse_frac": True}


def test_a_malformed_problem_is_named_by_its_line(capsys, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a"\n')
    argv = ["--llada_ckpt", "A/b", "--data", str(tmp_path / "p.jsonl")]
    assert "p.jsonl, line 2: not JSON" in refused(capsys, *argv)


def test_defaults_are_the_presets():
    llada, dream = options("--llada_ckpt", "A/b"), options("--model_alias", "dream")
    assert (dream.checkpoint, dream.windows) == ("Dream-org/Dream-v0-Instruct-7B", "cover")
    alone = llada.decode_config()
    assert (alone.remasking, alone.block_length, alone.temperature, alone.coupling) == ("low_confidence", 32, 0, "none")
    assert (alone.steps, alone.gen_length, alone.top_p, alone.top_k) == (256, 512, None, None)
    coupled = dream.decode_config(circuit_length=32)
    assert (coupled.remasking, coupled.block_length, coupled.windows) == ("entropy", None, "cover")
    assert (coupled.temperature, coupled.top_p, coupled.top_k, coupled.coupling) == (0.2, 0.95, 50, "latent")
    assert dream.decode_config().windows is None
    assert llada.decode_config(circuit_length=16).block_length == 16


def test_flags_reach_the_decoder():
    argv = "--dream_ckpt A/b --pc_ckpt A/p --dream_block --block_length 8 --gen_length 64 --top_k 0 --pc_frac always"
    decode = options(*argv.split(), "--alg", "maskgit_plus", "--coupling", "any_order").decode_config(8)
    assert (decode.block_length, decode.windows, decode.gen_length, decode.steps) == (8, None, 64, 32)
    assert (decode.top_k, decode.pc_frac, decode.remasking, decode.coupling) == (
        None,
        None,
        "maskgit_plus",
        "any_order",
    )
    best = options("--dream_ckpt", "A/b", "--pc_ckpt", "A/p", "--dream_window", "best")
    assert best.decode_config(8).windows == "best"


def test_folder_names_tell_runs_apart():
    argv = "--llada_ckpt A/b --num_steps 64 --pc_ckpt runs/gsm-1.5.jpc --pc_frac 0.5 --tag a"
    assert options(*argv.split()).run_name("gsm8k") == ("0shot_llada_gsm8k_pc_gsm-1.5_num_steps=64_pc_frac=0.5_a")
    argv = "--dream_ckpt A/b --dream_block --seed 3 --top_k 0"
    assert options(*argv.split()).run_name("gsm8k") == "0shot_dream_gsm8k_block_top_k=0_seed=3"


def test_without_a_model_the_demo_runs(monkeypatch):
    from experiments import demo

    calls = []
    monkeypatch.setattr(demo, "main", calls.append)
    gsm8k.main([])
    gsm8k.main(["--output_dir", "here", "--problems", "20", "--seed", "2"])
    assert calls == [[], ["--output_dir", "here", "--problems", "20", "--seed", "2"]]


def test_help_shows_groups_and_examples(capsys):
    with pytest.raises(SystemExit) as exit_info:
        gsm8k.main(["--help"])
    assert exit_info.value.code == 0
    shown = capsys.readouterr().out
    for part in ("--llada_ckpt", "--dream_window", "circuit:", "examples", "low_confidence for LLaDA"):
        assert part in shown


@pytest.fixture
def checkpoint(fixtures_dir, tmp_path):
    """A tiny LLaDA whose files may be changed."""
    folder = tmp_path / "llada_tiny"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(fixtures_dir / "llada_tiny" / name, folder)
        (folder / name).chmod(0o644)
    return folder


def edit_json(path, **changes):
    """Changes entries of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.fixture
def problems_file(tmp_path, monkeypatch):
    """Seven problems in GSM8K's schema; the data sets' cache stays out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in QUESTIONS]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "problems.jsonl"


@pytest.fixture
def no_loading(monkeypatch):
    """Fails the test if weights are asked for."""
    from codd_jax.evaluation.models import Models

    monkeypatch.setattr(Models, "get", lambda *_: pytest.fail("weights were loaded"))


def test_checkpoints_are_refused_before_weights_are_loaded(capsys, checkpoint, problems_file, no_loading):
    common = ["--data", str(problems_file), "--output_dir", str(checkpoint / "out")]
    message = refused(capsys, "--dream_ckpt", str(checkpoint), *common)
    assert f"use --llada_ckpt {checkpoint}" in message
    message = refused(capsys, "--llada_ckpt", str(checkpoint), *common, "--gen_length", "200000")
    assert "131072" in message
    edit_json(checkpoint / "tokenizer_config.json", chat_template=None)
    assert "has no chat template" in refused(capsys, "--llada_ckpt", str(checkpoint), *common)
    edit_json(checkpoint / "config.json", model_type="gpt2", architectures=["GPT2LMHeadModel"])
    assert "gpt2" in refused(capsys, "--llada_ckpt", str(checkpoint), *common)
    (checkpoint / "config.json").unlink()
    assert "config.json does not exist" in refused(capsys, "--llada_ckpt", str(checkpoint), *common)


def test_the_whole_path_with_backbone_and_circuit(capsys, checkpoint, problems_file):
    """A tiny LLaDA and a random circuit; the run is cut short and continued, and the answers are the model's own."""
    model = ["--llada_ckpt", str(checkpoint), "--pc_ckpt", str(checkpoint.parent / "circuit")]
    save_circuit(checkpoint.parent / "circuit", HMM.random(jax.random.key(0), 8, 4, 384))
    argv = [*model, "--gen_length", "16", "--pc_frac", "always", "--output_dir", str(checkpoint.parent / "out")]
    argv += ["--data", str(problems_file), "--limit", "3"]
    gsm8k.main([*argv, "--batch_size", "2"])
    folder = pathlib.Path(capsys.readouterr().out.splitlines()[-1]).parent
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["settings"]["decoding"]["block_length"] == 8
    assert summary["settings"]["decoding"]["coupling"] == "latent"
    assert (summary["total"], summary["settings"]["dtype"]) == (3, "float32")
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text(lines[0] + lines[1][:30])
    gsm8k.main([*argv, "--batch_size", "1"])
    again = (folder / "samples.jsonl").read_text().splitlines()
    assert answers(again) == answers(lines)
    with pytest.raises(SystemExit):
        gsm8k.main([*argv, "--dtype", "bfloat16"])
    assert 'dtype: "float32" → "bfloat16"' in capsys.readouterr().err

    codd = CoDD.from_pretrained(*model[1::2], dtype="float32")
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    messages += [{"role": "user", "content": f"Question: {QUESTIONS[2][0]}\nAnswer:"}]
    alone = codd.generate([messages], DecodeConfig(**summary["settings"]["decoding"]))
    assert answers(lines)[2] == alone.tokens[0].tolist()


def answers(lines) -> dict[int, list[int]]:
    """Tokens by document of the lines of a samples.jsonl."""
    records = [json.loads(line) for line in lines]
    return {record["doc_id"]: record["tokens"] for record in records}


def test_a_prompt_is_shown_side_by_side(capsys, monkeypatch, checkpoint):
    save_circuit(checkpoint.parent / "circuit", HMM.random(jax.random.key(0), 8, 4, 384))
    argv = ["--llada_ckpt", str(checkpoint), "--pc_ckpt", str(checkpoint.parent / "circuit"), "--prompt", "6 times 7?"]
    gsm8k.main([*argv, "--gen_length", "16", "--output_dir", str(checkpoint.parent / "out")])
    shown = capsys.readouterr().out.splitlines()
    assert "backbone alone" in shown[0]
    assert "CoDD (latent coupling)" in shown[0]
    written = json.loads(pathlib.Path(shown[-1]).read_text())
    # The official example's settings, at its four tokens a step.
    assert {name: written["decoding"][name] for name in ("steps", "pc_temperature", "pc_frac")} == {
        "steps": 4,
        "pc_temperature": 0.1,
        "pc_frac": 0.7,
    }
    assert "is empty" in refused(capsys, *argv[:-1], " ")
