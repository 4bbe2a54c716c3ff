"""The schema of a `.jpc` file: what PyJuice's node dicts may hold, checked field by field.

Arrays stay views of the file, so looking at a circuit's sizes reads none of its parameters.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from codd_jax.io.inert_pickle import Call, read_pickle

_RECONSTRUCT = {("numpy._core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "_reconstruct")}
_FROMBUFFER = {("numpy._core.numeric", "_frombuffer"), ("numpy.core.numeric", "_frombuffer")}
_NDARRAY, _DTYPE = ("numpy", "ndarray"), ("numpy", "dtype")
_OUTER = _RECONSTRUCT | _FROMBUFFER | {_NDARRAY, _DTYPE}

_PREFIX = "pyjuice.nodes.distributions."
CATEGORICAL = (_PREFIX + "categorical", "Categorical")
EXTERN_PRODUCT = (_PREFIX + "external_categorical", "ExternProductCategorical")
SOFT_EVIDENCE = (_PREFIX + "softevi_categorical", "SoftEvidenceCategorical")
_INNER = {CATEGORICAL, EXTERN_PRODUCT, SOFT_EVIDENCE}

_FIELDS = {
    *("type", "chs", "edge_ids", "params", "zero_param_mask", "source_node", "scope", "dist"),
    *("num_node_blocks", "block_size", "num_node_groups", "group_size", "num_nodes"),
    "normalization",  # ours, on the root alone; PyJuice passes over it
}
_DIST_BYTES = 4096
_DTYPES = {"f4": np.float32, "i8": np.int64, "b1": np.bool_}


@dataclasses.dataclass(frozen=True)
class Node:
    """One checked entry of the file: a layer of `blocks * block_size` nodes over the same variables."""

    kind: str
    blocks: int
    block_size: int
    children: tuple[int, ...]
    edges: np.ndarray | None = None  # Product [blocks, children], Sum [2, K]: parent block, child block
    params: np.ndarray | None = None
    zeros: np.ndarray | None = None  # bool, shaped as params: entries that PyJuice holds at zero
    source: int | None = None  # the node whose parameters this one shares
    variable: int | None = None
    num_categories: int | None = None
    normalization: str = "global"

    @property
    def size(self) -> int:
        """The number of nodes in the layer."""
        return self.blocks * self.block_size


def read_nodes(path: str | os.PathLike) -> list[Node]:
    """Every node of a `.jpc` file, in file order, arrays as read-only views of the mapped file.

    Raises:
      ValueError: truncated or malformed files, files that name anything but NumPy arrays and PyJuice's categorical
        distributions, fields that do not add up; the message names the file.
      FileNotFoundError: no such file.
    """
    origin = str(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{origin}: no such circuit file")
    if os.path.getsize(path) == 0:
        raise ValueError(f"{origin}: an empty file; copy or download the circuit again")
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if data[0] != 0x80:
        raise ValueError(f"{origin}: not a .jpc circuit: it does not begin as a pickle does")
    listing = read_pickle(data, origin, _OUTER)
    if type(listing) is not list or not listing or not all(type(entry) is dict for entry in listing):
        raise ValueError(f"{origin}: not a .jpc circuit: the file does not hold a list of node dicts")
    known: dict[bytes, int] = {}
    return [_node(entry, f"{origin}: node {index}", known) for index, entry in enumerate(listing)]


def _node(entry: dict[str, Any], where: str, known: dict[bytes, int]) -> Node:
    if "external_params" in entry:
        raise ValueError(f"{where}: has external parameters, which are no numbers of this circuit; not supported")
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0][:100]!r}; written by a newer PyJuice?")
    kind = entry.get("type")
    if type(kind) is not str or kind not in ("Input", "Product", "Sum"):
        raise ValueError(f"{where}: its type is not Input, Product or Sum")
    blocks, block_size = _sizes(entry, where)
    children = entry.get("chs")
    if type(children) is not tuple or not all(type(child) is int for child in children):
        raise ValueError(f"{where}: chs is not a tuple of node numbers")
    source = entry.get("source_node")
    if source is not None and type(source) is not int:
        raise ValueError(f"{where}: source_node is not a node number")
    fields: dict[str, Any] = {"normalization": entry.get("normalization", "global")}
    if type(fields["normalization"]) is not str or fields["normalization"] not in ("global", "local"):
        raise ValueError(f"{where}: its normalization is neither global nor local")
    for name, key, dtype in (
        ("edges", "edge_ids", np.int64),
        ("params", "params", np.float32),
        ("zeros", "zero_param_mask", np.bool_),
    ):
        if entry.get(key) is not None:
            fields[name] = _array(entry[key], dtype, f"{where}: {key}")
    if kind == "Input":
        scope = entry.get("scope")
        if type(scope) is not list or len(scope) != 1 or type(scope[0]) is not int:
            raise ValueError(f"{where}: an input whose scope is not one variable; not the input of an HMM")
        fields |= {"variable": scope[0], "num_categories": _num_categories(entry.get("dist"), f"{where}: dist", known)}
    elif "edges" not in fields:
        raise ValueError(f"{where}: a {kind} without edge_ids")
    return Node(kind, blocks, block_size, children, source=source, **fields)


def _sizes(entry: dict[str, Any], where: str) -> tuple[int, int]:
    for blocks_key, size_key in (("num_node_blocks", "block_size"), ("num_node_groups", "group_size")):
        if blocks_key in entry:
            sizes = entry[blocks_key], entry.get(size_key)
            break
    else:
        sizes = entry.get("num_nodes"), 1
    if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
        raise ValueError(f"{where}: its number of blocks and block size are not positive integers")
    return sizes


def _array(value: Any, dtype: type, where: str) -> np.ndarray:
    """Turn the record of a pickled array into a view of its bytes, if shape, dtype and bytes agree."""
    if not isinstance(value, Call):
        raise ValueError(f"{where}: not an array")
    if value.function in _RECONSTRUCT:
        placeholder = len(value.args) == 3 and value.args[0] == _NDARRAY and value.args[1] == (0,)
        state = value.state
        if not placeholder or type(state) is not tuple or len(state) != 5 or state[0] != 1:
            raise ValueError(
                f"{where}: not an array as NumPy pickles one (it asks for another shape before its data, or has none);"
                " refused"
            )
        _, shape, described, fortran, payload = state
    elif value.function in _FROMBUFFER and len(value.args) == 4 and value.state is None:
        payload, described, shape, order = value.args
        fortran = order != "C"
    else:
        raise ValueError(f"{where}: not an array as NumPy pickles one; refused")
    if fortran is not False:
        raise ValueError(f"{where}: in Fortran order; PyJuice writes C order")
    _check_dtype(described, dtype, where)
    if type(shape) is not tuple or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise ValueError(f"{where}: its shape is not a tuple of sizes")
    if not isinstance(payload, memoryview):
        raise ValueError(f"{where}: its data are not bytes")
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    if len(shape) > 4 or needed != len(payload):
        raise ValueError(f"{where}: shape {shape[:8]} needs {needed} bytes, the file holds {len(payload)}; refused")
    return np.frombuffer(payload, dtype=dtype).reshape(shape)


def _check_dtype(described: Any, dtype: type, where: str) -> None:
    expected = np.dtype(dtype)
    code = (
        described.args[0] if isinstance(described, Call) and described.function == _DTYPE and described.args else None
    )
    if type(code) is not str or _DTYPES.get(code) is not dtype:
        raise ValueError(
            f"{where}: its dtype is {str(code)[:20] if type(code) is str else 'unreadable'}, not {expected}"
        )
    state = described.state
    if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
        raise ValueError(f"{where}: its byte order is not little-endian")


def _num_categories(value: Any, where: str, known: dict[bytes, int]) -> int:
    """The number of categories in an input's nested `dist` pickle; `known` has those that were decoded before."""
    if not isinstance(value, memoryview):
        raise ValueError(f"{where}: an input without its distribution")
    if len(value) > _DIST_BYTES:
        raise ValueError(f"{where}: a distribution of {len(value)} bytes, where some hundred are due; refused")
    payload = bytes(value)
    if payload not in known:
        known[payload] = _decode_categories(value, where)
    return known[payload]


def _decode_categories(value: memoryview, where: str) -> int:
    call = read_pickle(value, where, _INNER)
    if not isinstance(call, Call):
        raise ValueError(f"{where}: not a distribution")
    if call.function == CATEGORICAL:
        state = call.state
        number = state.get("num_cats") if type(state) is dict and call.args == () else None
    else:
        arity = 1 if call.function == EXTERN_PRODUCT else 2
        number = call.args[0] if len(call.args) == arity and call.state is None else None
    if type(number) is not int or not 0 < number < 2**31:
        raise ValueError(f"{where}: its number of categories is not a positive integer")
    return number
