"""ONNX models of a few nodes, written as bytes: no package that makes them is needed."""

from __future__ import annotations

import struct
from collections.abc import Sequence

FLOAT32, INT64 = 1, 7


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a Protocol Buffers message (values below 128, lengths below 16384)."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    value = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2, len(value) & 127 | 128, len(value) >> 7]) + value


def node(operator: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> bytes:
    return field(
        1,
        b"".join(field(1, name) for name in inputs)
        + field(2, output)
        + field(4, operator)
        + attributes,
    )


def lookup_model(table: Sequence[Sequence[float]], output_axes: int) -> bytes:
    """An ONNX model that takes input_ids alone; the state of token ``i`` is ``table[i]``.

    With ``output_axes`` 2 it sums over the tokens itself, as exports that pool do.
    """
    nodes = node("Gather", ["table", "input_ids"], "states")
    if output_axes == 2:
        nodes += _sum_over_tokens("states", "pooled")
    return _model(nodes, table, ["input_ids"], "states" if output_axes == 3 else "pooled")


def pair_model(table: Sequence[Sequence[float]]) -> bytes:
    """An ONNX cross-encoder: token ``i`` adds ``table[i]`` in a pair's first text.

    In its second text it adds ``table[i + 1]``, and padding adds ``table[0]``.
    """
    nodes = (
        node("Add", ["input_ids", "token_type_ids"], "typed")
        + node("Mul", ["typed", "attention_mask"], "row")
        + node("Gather", ["table", "row"], "states")
        + _sum_over_tokens("states", "logits")
    )
    return _model(nodes, table, ["input_ids", "token_type_ids", "attention_mask"], "logits")


def _sum_over_tokens(states: str, output: str) -> bytes:
    no_keepdims = field(5, field(1, "keepdims") + field(3, 0) + bytes([20 << 3 & 127 | 128, 1, 2]))
    return node("ReduceSum", [states, "axis"], output, no_keepdims)


def _model(
    nodes: bytes, table: Sequence[Sequence[float]], inputs: Sequence[str], output: str
) -> bytes:
    values = [value for row in table for value in row]
    weights = (
        field(1, len(table))
        + field(1, len(table[0]))
        + field(2, FLOAT32)
        + field(8, "table")
        + field(9, struct.pack(f"<{len(values)}f", *values))
    )
    axis_1 = field(1, 1) + field(2, INT64) + field(8, "axis") + field(9, struct.pack("<q", 1))
    graph = (
        nodes
        + field(2, "lookup")
        + field(5, weights)
        + field(5, axis_1)
        + b"".join(field(11, _tensor(name, INT64, 2)) for name in inputs)
        + field(12, _tensor(output, FLOAT32, 3 if output == "states" else 2))
    )
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


def _tensor(name: str, element_type: int, axes: int) -> bytes:
    shape = b"".join(field(1, field(2, f"{name}{axis}")) for axis in range(axes))
    return field(1, name) + field(2, field(1, field(1, element_type) + field(2, shape)))
