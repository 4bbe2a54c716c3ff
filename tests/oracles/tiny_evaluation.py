"""A whole evaluation of a tiny random model as a process of its own, to be killed, sharded and spread over processes.

python -m tests.oracles.tiny_evaluation CHECKPOINT FOLDER [MESH ...]
"""

import argparse
import dataclasses
import json
import pathlib

import jax
from flax import nnx

from codd_jax import HMM, CoDD, DecodeConfig, Transformer, distributed
from codd_jax.backbones import PRESETS
from codd_jax.evaluation.results import open_results
from codd_jax.evaluation.sampling import Request, Sampler
from tests.oracles.scripted_model import byte_tokenizer

# Enough stop ids to end the answers at many lengths.
DECODE = DecodeConfig(
    gen_length=32, block_length=8, threshold=0.5, pc_frac=0.9, temperature=1.0, stop_ids=tuple(range(5, 256, 9))
)
SMALL = {"num_layers": 1, "width": 32, "num_heads": 4, "num_kv_heads": 4, "head_dim": 8, "ffn_width": 48}
IDS = {"vocab_size": 264, "mask_id": 263, "eos_id": 256, "pad_id": 256}


def save_checkpoint(folder: pathlib.Path) -> pathlib.Path:
    """A random LLaDA with decided opinions over bytes, a circuit, and a tokenizer."""
    backbone = Transformer(dataclasses.replace(PRESETS["llada-1m"], **SMALL, **IDS), rngs=nnx.Rngs(0))
    backbone.head.weight[...] = backbone.head.weight[...] * 2.5
    hmm = HMM.random(jax.random.key(1), length=8, num_states=4, vocab_size=IDS["vocab_size"])
    CoDD(backbone, hmm, byte_tokenizer()).save_pretrained(folder)
    return folder


def requests(count: int) -> list[Request]:
    """Prompts of 1 to 60 bytes, some of them equal."""
    texts = [f"{n * n % 83} and " * (n % 7) + "what?" for n in range(count)]
    return [Request(n, 0, text, ("zz",), {"question": text}, str(n)) for n, text in enumerate(texts)]


def score(request: Request, text: str) -> dict[str, float]:
    """Something that depends on every character."""
    return {"even": float(sum(text.encode()) % 2 == 0)}


def run(model: CoDD, folder: pathlib.Path, count: int, batch_size: int, dtype: str) -> None:
    """Answers what the folder does not hold yet, and writes a summary."""
    with open_results(folder, {"decode": dataclasses.asdict(DECODE), "dtype": dtype}) as results:
        asked = requests(count)
        sampler = Sampler(model, DECODE, results, score, "even", batch_size=batch_size, progress=False)
        sampler.answer(asked)
        samples = [results.samples[request.doc_id, 0] for request in asked]
        results.write_summary({name: sum(s[name] for s in samples) for name in ("correct", "num_tokens", "steps_used")})


def read(folder: pathlib.Path) -> tuple[list[dict], dict]:
    """Samples by id without their times, and the summary; no sample may stand there twice."""
    lines = (folder / "samples.jsonl").read_text().splitlines()
    records = sorted(({**json.loads(line), "seconds": None} for line in lines), key=lambda record: record["doc_id"])
    assert [record["doc_id"] for record in records] == list(range(len(records)))
    return records, json.loads((folder / "summary.json").read_text())


def main() -> None:
    """One run for each mesh, each in a folder below FOLDER."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("meshes", nargs="*", default=["none"])
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--coordinator")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--process_id", type=int)
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    for mesh in args.meshes:
        model = CoDD.from_pretrained(
            args.checkpoint, dtype=args.dtype, mesh=None if mesh == "none" else mesh, progress=False
        )
        run(model, args.folder / mesh, args.requests, args.batch_size, args.dtype)


if __name__ == "__main__":
    main()
