"""A worker that runs the public PyTorch CoDD's LLaDA loop for `experiments.latency`, in an interpreter of its own.

It reads one JSON object a line from standard input and answers with one: {"prompt", "steps", "gen_length",
"block_length"} decodes, {"tokens"} runs one forward pass over all positions, {"matmul": [m, k, n], "times"} multiplies
two matrices. It imports nothing of codd_jax, so it also runs where only that checkout's own packages are installed.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import time
import types


def load(checkout: str, folder: str, dtype: str):
    """The public model with the weights of a HuggingFace folder, and the public decoding loop."""
    import torch
    from safetensors.torch import load_file

    sys.path.insert(0, checkout)
    with contextlib.suppress(ImportError):
        import pyjuice  # noqa: F401
    # The loop imports PyJuice at the top, but the backbone alone never calls it.
    sys.modules.setdefault("pyjuice", types.ModuleType("pyjuice"))
    from eval.llada.configuration_llada import LLaDAConfig
    from eval.llada.llada_generate import llada_diffusion_generate
    from eval.llada.modeling_llada import LLaDAModelLM

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        settings = json.load(file)
    settings = {key: value for key, value in settings.items() if key not in ("architectures", "auto_map")}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LLaDAModelLM(LLaDAConfig(**{**settings, "init_device": device}), init_params=False)
    model.load_state_dict(load_file(os.path.join(folder, "model.safetensors")), strict=True)
    return model.to(device=device, dtype=getattr(torch, dtype)).eval(), llada_diffusion_generate


@functools.lru_cache(maxsize=2)
def matrices(m: int, k: int, n: int, device):
    """Two random float32 matrices, made once for a run of requests."""
    import torch

    return torch.rand(m, k, device=device), torch.rand(k, n, device=device)


def answer(model, generate, request: dict) -> dict:
    """One timed call."""
    import torch

    if "matmul" in request:
        left, right = matrices(*request["matmul"], model.device)
        start = time.perf_counter()
        for _ in range(request["times"]):
            torch.matmul(left, right)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - start, "out": []}
    ids = torch.tensor([request.get("prompt") or request["tokens"]], device=model.device)
    start = time.perf_counter()
    with torch.no_grad(), contextlib.redirect_stderr(open(os.devnull, "w")):  # its progress bar
        if "tokens" in request:
            out = model(ids).logits[0, -1, :1]
        else:
            names = {"num_steps": "steps", "gen_length": "gen_length", "block_length": "block_length"}
            arguments = {name: request[key] for name, key in names.items()}
            out = generate(model, ids, mask_id=model.config.mask_token_id, **arguments)[0, len(request["prompt"]) :]
        if model.device.type == "cuda":
            torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "out": out.tolist()}


def main() -> None:
    """Answers requests until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", help="the public PyTorch CoDD")
    parser.add_argument("folder", help="a LLaDA in HuggingFace layout, one safetensors file")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    out, sys.stdout = sys.stdout, sys.stderr  # whatever the checkout prints stays out of the answers
    model, generate = load(args.checkout, args.folder, args.dtype)
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(model, generate, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
