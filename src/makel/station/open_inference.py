"""The tensors of the Open Inference Protocol: a request's bytes to an array, and arrays to an answer's bytes.

Protocol: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md; tensors as bytes behind
the JSON: github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from makel.errors import TooLargeError, UsageError
from makel.types import Shape

INPUT = "image"
OUTPUTS = ("score", "anomaly_map")
MOST_JSON_BYTES = 16 * 2**20
"""A value that takes two bytes as text takes thirty in memory, and while text is parsed nothing else runs."""

_MOST_PARTS = 100_000
"""Lists, objects and texts in a request: a list for each row of 64 images of 256 px, and as many again."""

_VALUES_AT_ONCE = 50_000
EXTENSIONS = ("binary_tensor_data",)
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class InferenceRequest:
    """What a client asks for.

    Attributes:
        id: The client's name for it; "" for none.
        images: (N, 3, H, W) float32 in [0, 1].
        outputs: Names of the outputs wanted, and whether each is wanted as bytes.
    """

    id: str
    images: NDArray[np.float32]
    outputs: dict[str, bool]


def read(body: bytes, header_length: str | None, shape: Shape) -> InferenceRequest:
    """Understand a request.

    Args:
        body: JSON, with the bytes of tensors behind it where `header_length` says so.
        header_length: The header Inference-Header-Content-Length; None without.
        shape: Height and width of the images that the model takes, in pixels.

    Raises:
        UsageError: It is no request this model can answer; the message says what was expected.
        TooLargeError: Its JSON is longer than `MOST_JSON_BYTES`.
    """
    split = len(body) if header_length is None else _number(header_length, len(body))
    text = body[:split]
    if len(text) > MOST_JSON_BYTES:
        raise TooLargeError(
            f"this request has {len(text)} bytes of JSON, at most {MOST_JSON_BYTES} are read: send tensors as bytes "
            "behind it (binary_data), or fewer images at once"
        )
    if sum(map(text.count, (b"[", b"{", b'"'))) > _MOST_PARTS:
        raise UsageError(f"the request has over {_MOST_PARTS} lists, objects and texts: send its data as a flat list")
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request is not JSON: {error}") from error
    inputs = _field(request, "inputs", list)
    if len(inputs) != 1 or _field(inputs[0], "name", str) != INPUT:
        raise UsageError(f"the request must have one input, {INPUT!r}")
    images = _tensor(inputs[0], memoryview(body)[split:], (3, *shape))
    as_bytes = _option(request, "binary_data_output", False)
    wanted = _field(request, "outputs", list) if "outputs" in request else []
    outputs = {_field(output, "name", str): _option(output, "binary_data", as_bytes) for output in wanted}
    if unknown := sorted(outputs.keys() - set(OUTPUTS)):
        raise UsageError(f"there is no output {unknown[0][:100]!r}: there are {' and '.join(OUTPUTS)}")
    request_id = request.get("id", "")
    if not isinstance(request_id, str):
        raise UsageError("id must be text")
    return InferenceRequest(request_id, images, outputs or dict.fromkeys(OUTPUTS, as_bytes))


def write(
    request: InferenceRequest, model: str, version: str, arrays: Mapping[str, NDArray[np.float32]]
) -> tuple[bytes, dict[str, str]]:
    """The answer to a request.

    Args:
        request: What was asked for.
        model: The model's name.
        version: The version that answered.
        arrays: Every output by its name.

    Returns:
        The body, and the headers it needs.
    """
    outputs: list[str] = []
    tail: list[bytes] = []
    for name, as_bytes in request.outputs.items():
        array = np.ascontiguousarray(arrays[name], "<f4")
        output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
        if as_bytes:
            tail.append(array.tobytes())
            outputs.append(json.dumps({**output, "parameters": {"binary_data_size": len(tail[-1])}}))
        else:
            outputs.append(f'{json.dumps(output)[:-1]}, "data": [{_listed(array)}]}}')
    answer = {**({"id": request.id} if request.id else {}), "model_name": model, "model_version": version}
    head = f'{json.dumps(answer)[:-1]}, "outputs": [{", ".join(outputs)}]}}'.encode("ascii")
    if not tail:
        return head, {"Content-Type": "application/json"}
    return b"".join([head, *tail]), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def metadata(model: str, versions: Sequence[str], shape: Shape) -> dict[str, Any]:
    """What a model that sees images of this height and width takes and gives; -1 stands for any number of images."""
    return {
        "name": model,
        "versions": list(versions),
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, 3, *shape]}],
        "outputs": [
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "anomaly_map", "datatype": "FP32", "shape": [-1, 1, *shape]},
        ],
    }


def _tensor(tensor: Any, tail: memoryview, expected: tuple[int, ...]) -> NDArray[np.float32]:
    shape = _field(tensor, "shape", list)
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in shape):
        raise UsageError(f"the shape of {INPUT} must be whole numbers")
    if tensor.get("datatype") != "FP32" or len(shape) != 4 or tuple(shape[1:]) != expected or shape[0] < 1:
        raise UsageError(
            f"{INPUT} is {str(tensor.get('datatype'))[:20]} of shape {str(shape)[:60]}; FP32 of shape (N, "
            f"{', '.join(map(str, expected))}) was expected, RGB in [0, 1]"
        )
    count = math.prod(shape)
    size_bytes = _option(tensor, "binary_data_size", -1)
    if size_bytes >= 0:
        if size_bytes != 4 * count or len(tail) != size_bytes:
            raise UsageError(f"{INPUT} says {size_bytes} bytes and {len(tail)} came, but its shape needs {4 * count}")
        array = np.frombuffer(tail, "<f4")
    else:
        array = _array(_field(tensor, "data", list))
        if array.size != count:
            raise UsageError(f"{INPUT} has {array.size} values, but its shape needs {count}")
    # Written so that NaN fails; the model was fitted on nothing else.
    if not (array.min() >= 0 and array.max() <= 1):
        raise UsageError(f"{INPUT} has values from {array.min()} to {array.max()}; they must lie in [0, 1]")
    return np.asarray(array.reshape(shape), np.float32)


def _listed(array: NDArray[np.float32]) -> str:
    """Values as the inside of a list of JSON; in parts, for meanwhile nothing else runs."""
    values = array.ravel()
    starts = range(0, len(values), _VALUES_AT_ONCE)
    return ", ".join(json.dumps(values[start : start + _VALUES_AT_ONCE].tolist())[1:-1] for start in starts)


def _array(data: list[Any]) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # what is beyond a float becomes infinite, and is refused as that
            return np.asarray(data, np.float32).ravel()
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"the data of {INPUT} must be numbers, flat or nested as its shape") from error


def _field(item: Any, name: str, kind: type[list[Any]] | type[str]) -> Any:
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind):
        word = "text" if kind is str else "a list"
        raise UsageError(f"the request has no {name!r}, or it is not {word}")
    return value


def _option(item: Any, name: str, default: Any) -> Any:
    """One of an item's `parameters`, of the kind its default is."""
    parameters = item.get("parameters", {}) if isinstance(item, dict) else {}
    value = parameters.get(name, default) if isinstance(parameters, dict) else default
    if type(value) is not type(default):
        raise UsageError(f"the parameter {name!r} is {str(value)[:40]}; {type(default).__name__} was expected")
    return value


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:20]) <= most):
        raise UsageError(f"{HEADER_LENGTH} is {text[:40]!r}; at most the {most} bytes that came were expected")
    return int(text)
