"""From potentials to tokens: configuration, canvas and the jitted decoding loops."""

from codd_jax.decoding.canvas import Canvas, generations, make_canvas, row_keys
from codd_jax.decoding.config import ALGORITHMS, SYNONYMS, DecodeConfig
from codd_jax.decoding.denoiser import BackboneDenoiser, Denoiser, TwoPartDenoiser
from codd_jax.decoding.loop import begin_block, decode, decode_blocks, num_blocks, run_block
from codd_jax.decoding.refill import Boundary, Finished, Requests, decode_requests
from codd_jax.decoding.steps import denoise_step
from codd_jax.decoding.strategy import Numbers, Strategy

__all__ = [
    "ALGORITHMS",
    "SYNONYMS",
    "BackboneDenoiser",
    "Boundary",
    "Canvas",
    "DecodeConfig",
    "Denoiser",
    "Finished",
    "Numbers",
    "Requests",
    "Strategy",
    "TwoPartDenoiser",
    "begin_block",
    "decode",
    "decode_blocks",
    "decode_requests",
    "denoise_step",
    "generations",
    "make_canvas",
    "num_blocks",
    "row_keys",
    "run_block",
]
