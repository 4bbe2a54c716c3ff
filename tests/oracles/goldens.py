"""Reads the decoding goldens and turns the reference's arguments into a `DecodeConfig`."""

from __future__ import annotations

import json
import pathlib
import warnings

import numpy as np

from codd_jax.decoding import DecodeConfig

WINDOWED = {"window": "best"}


def load(folder: pathlib.Path, arrays: str = "decode.npz", cases: str = "decode_cases.json"):
    """(cases, arrays) of one fixture folder."""
    with np.load(folder / arrays) as archive:
        return json.loads((folder / cases).read_text()), dict(archive)


def decode_config(case: dict, gen_length: int = 512) -> DecodeConfig:
    """The configuration that one golden case was run with."""
    given, pc = case["kwargs"], case.get("pc")
    common = {
        "stop_at_eos": False,
        "step_split": "floor",
        "pc_temperature": pc["pc_temperature"] if pc else 1.0,
        "pc_frac": pc["pc_frac"] if pc else None,
        "reverse_frac": bool(pc and pc["reverse_frac"]),
        "temperature": given["temperature"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some goldens run more steps than there are tokens
        if case["loop"] == "llada":
            return DecodeConfig(
                steps=given["num_steps"],
                gen_length=given["gen_length"],
                block_length=given["block_length"],
                remasking=given["remasking"],
                cfg_scale=given["cfg_scale"],
                **common,
            )
        top_p = given.get("top_p")
        return DecodeConfig(
            steps=given["steps"],
            gen_length=gen_length,
            block_length=None if case["loop"] == "sample" else case["block_length"],
            remasking=given["alg"],
            window_remasking=case.get("remask_strategy"),
            windows="best" if case["loop"] == "window" else None,
            schedule="even" if case["loop"] == "block" else "timestep",
            quota="batch" if case["loop"] == "sample" else "row",
            top_p=top_p if top_p is not None and top_p < 1 else None,
            top_k=given.get("top_k"),
            eps=given.get("eps", 1e-3),
            **common,
        )
