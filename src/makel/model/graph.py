"""What the graph of a model folder may hold. Looked at before ONNX Runtime sees it, and without the package `onnx`.

An ONNX file can name other files of the machine as its weights, and can loop for ever; a network that makel exported
does neither. So whatever makel's own exports do not need is refused: weights outside the file, graphs within graphs,
functions, operators of other makers, and every operator that is not in `OPERATORS`.

An ONNX file is one protobuf message (https://protobuf.dev/programming-guides/encoding/, onnx.proto3): a sequence of
fields, each a number and a value, some values messages themselves. Here every field of every message down to a tensor's
is walked, none is computed with, and a field that is not in `_FIELDS` is refused. Where a message holds a field twice,
readers differ in which of them counts; here each of them has to be allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from makel.errors import ModelFolderError

_OPERATORS = """
Abs Add AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Div
Equal Erf Exp Expand Flatten Gather GatherND Gelu Greater HardSigmoid HardSwish Identity InstanceNormalization
LayerNormalization LeakyRelu Log MatMul MaxPool Mod Mul Neg Pad Pow Range Reciprocal ReduceL2 ReduceMax
ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Shape Sigmoid Sin Slice Softmax Softplus Split
Sqrt Squeeze Sub Tanh TopK Transpose Unsqueeze Where
"""
OPERATORS = frozenset(_OPERATORS.split())
"""Operators of ONNX that a model may use: those that the seven methods, every backbone that timm can take features
from and the exporters of earlier makels need. None of them repeats others, so a run ends."""

_MOST_FIELDS = 500_000
"""A network has some ten thousand."""

_PLAIN = ""
"""A value that says nothing of other files, operators or graphs: passed over, whatever it is."""

_FIELDS: dict[str, dict[int, str]] = {
    # message: field's number -> the message it holds, "operator", "domain", "place", or plain
    "model": {1: _PLAIN, 2: _PLAIN, 3: _PLAIN, 4: _PLAIN, 5: _PLAIN, 6: _PLAIN, 7: "graph", 8: "opset", 14: _PLAIN},
    "opset": {1: "domain", 2: _PLAIN},
    "graph": {1: "node", 2: _PLAIN, 5: "tensor", 10: _PLAIN, 11: _PLAIN, 12: _PLAIN, 13: _PLAIN, 16: _PLAIN},
    "node": {1: _PLAIN, 2: _PLAIN, 3: _PLAIN, 4: "operator", 5: "attribute", 6: _PLAIN, 7: "domain", 9: _PLAIN},
    # no 6 and 11, which are graphs, and no types and sparse tensors
    "attribute": {1: _PLAIN, 2: _PLAIN, 3: _PLAIN, 4: _PLAIN, 5: "tensor", 7: _PLAIN, 8: _PLAIN, 9: _PLAIN}
    | {10: "tensor", 13: _PLAIN, 20: _PLAIN},
    # no 13, which names another file
    "tensor": {1: _PLAIN, 2: _PLAIN, 4: _PLAIN, 5: _PLAIN, 6: _PLAIN, 7: _PLAIN, 8: _PLAIN, 9: _PLAIN, 10: _PLAIN}
    | {11: _PLAIN, 12: _PLAIN, 14: "place", 16: _PLAIN},
}
_REFUSED = {
    ("tensor", 13): "keeps weights in another file",
    ("attribute", 6): "has a graph within its graph, such as a loop",
    ("attribute", 11): "has a graph within its graph, such as a loop",
    ("model", 25): "has functions of its own",
}
"""What to say of the fields that matter; of the others, their number."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}


class _Span(NamedTuple):
    """A value of `_BYTES`: where it begins and ends."""

    start: int
    end: int


class _MalformedError(Exception):
    """The bytes are no protobuf message."""


def check_graph(model: bytes, name: str) -> None:
    """Refuse a network that is not of the kind makel exports.

    Args:
        model: The bytes of an ONNX file.
        name: What to call it in messages.

    Raises:
        ModelFolderError: It is no ONNX file, or holds weights in other files, graphs within its graph, functions, or an
            operator outside `OPERATORS`.
    """
    try:
        reason = _walk(model)
    except _MalformedError as error:
        raise ModelFolderError(f"{name} is no ONNX file: {error}. Restore it from a good copy, or fit again") from error
    if reason:
        raise ModelFolderError(f"{name} {reason}, which no model of makel does: nothing of it is run. Fit again")


def _walk(model: bytes) -> str:
    """What is not allowed in a network; "" for nothing."""
    messages, left, found_graph = [("model", _Span(0, len(model)))], _MOST_FIELDS, False
    while messages:
        kind, span = messages.pop()
        found_graph |= kind == "graph"
        for number, value in _read(model, span):
            left -= 1
            if left < 0:
                return f"has more than {_MOST_FIELDS} fields"
            holds = _FIELDS[kind].get(number)
            if holds is None:
                return _REFUSED.get((kind, number), f"has a field {number} in a {kind}")
            if holds in _FIELDS:
                messages.append((holds, _bytes(value)))
            elif holds and (reason := _wrong(holds, model, value)):
                return reason
    if not found_graph:
        raise _MalformedError("it holds no graph")
    return ""


def _wrong(holds: str, model: bytes, value: int | _Span) -> str:
    """What is not allowed in a value that is "operator", "domain" or "place"; "" for nothing."""
    if holds == "place":  # 0 is within the file
        return "keeps weights in another file" if value != 0 else ""
    span = _bytes(value)
    text = model[span.start : min(span.end, span.start + 100)].decode("utf-8", "replace")
    if holds == "domain":
        return "" if text in ("", "ai.onnx") else f"uses operators of {text!r}"
    return "" if text in OPERATORS else f"uses the operator {text!r}"


def _read(model: bytes, span: _Span) -> Iterator[tuple[int, int | _Span]]:
    """Number and value of each field of a message; of fixed widths the value is left out."""
    at = span.start
    while at < span.end:
        key, at = _varint(model, at, span.end)
        number, wire = key >> 3, key & 7
        if not 0 < number < 2**29:
            raise _MalformedError(f"it has a field {number}")
        value: int | _Span = 0
        if wire == _VARINT:
            value, at = _varint(model, at, span.end)
        elif wire == _BYTES:
            length, at = _varint(model, at, span.end)
            value = _Span(at, at + length)
            at += length
        elif wire in _WIDTHS:
            at += _WIDTHS[wire]
        else:
            raise _MalformedError(f"it has a field of the unknown type {wire}")
        if at > span.end:
            raise _MalformedError("it ends in the middle of a field")
        yield number, value


def _varint(model: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of up to 64 bits, seven a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _MalformedError("it ends in the middle of a number")
        byte = model[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _MalformedError("it has a number of more than 64 bits")


def _bytes(value: int | _Span) -> _Span:
    if isinstance(value, int):
        raise _MalformedError("a field has another type than ONNX gives it")
    return value
