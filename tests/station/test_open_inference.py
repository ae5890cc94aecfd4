"""The Open Inference Protocol, spoken by Triton's own client."""

import json
import time

import numpy as np
import pytest
import tritonclient.http as triton
from test_access import bearer
from test_service import problem
from tritonclient.utils import InferenceServerException

import tiny_model
from conftest import GOOD, serving
from makel.errors import TooLargeError, UsageError
from makel.station import open_inference
from makel.station.access import Access, Tokens
from makel.station.routes import inference

IMAGES = np.random.default_rng(3).random((5, 3, tiny_model.SIZE, tiny_model.SIZE), np.float32)


@pytest.fixture
def speaker(client):
    with triton.InferenceServerClient(f"127.0.0.1:{client.base_url.port}") as opened:
        yield opened


def test_health_and_metadata(speaker, station):
    assert speaker.is_server_live()
    assert speaker.is_server_ready()
    assert speaker.is_model_ready("part")
    assert speaker.is_model_ready("part", "1")
    assert not speaker.is_model_ready("part", "2")
    assert not speaker.is_model_ready("other")
    assert speaker.get_server_metadata()["name"] == "makel"
    described = speaker.get_model_metadata("part")
    assert (described["name"], described["versions"]) == ("part", ["1"])
    assert described["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 16, 16]}]


@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_scores_are_those_of_the_model(speaker, station, as_bytes, named):
    tensor = triton.InferInput("image", list(IMAGES.shape), "FP32")
    tensor.set_data_from_numpy(IMAGES, binary_data=as_bytes)
    outputs = [triton.InferRequestedOutput(name, binary_data=as_bytes) for name in ("anomaly_map", "score")]
    result = speaker.infer("part", [tensor], outputs=outputs if named else None, request_id="7", model_version="1")
    expected = station.line().inspector.scores(IMAGES)
    np.testing.assert_allclose(result.as_numpy("score"), expected.image, rtol=1e-6)
    np.testing.assert_allclose(result.as_numpy("anomaly_map"), expected.anomaly_map, rtol=1e-6)
    assert (result.get_response()["id"], result.get_response()["model_version"]) == ("7", "1")
    assert station.store.count() == 0


def test_one_output_alone(speaker):
    tensor = triton.InferInput("image", list(IMAGES.shape), "FP32")
    tensor.set_data_from_numpy(IMAGES)
    result = speaker.infer("part", [tensor], outputs=[triton.InferRequestedOutput("score")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["score"]


def test_clients_see_the_reason(speaker):
    tensor = triton.InferInput("image", [1, 3, 4, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(InferenceServerException, match=r"FP32 of shape \(N, 3, 16, 16\) was expected"):
        speaker.infer("part", [tensor])
    with pytest.raises(InferenceServerException, match="there is no model 'other' here"):
        speaker.get_model_metadata("other")


def test_with_a_token(station):
    tokens = Tokens(station.folder / "tokens.json")
    token = tokens.add("operator", "")
    with (
        serving(station, Access.on("127.0.0.1", tokens, token_needed=True)) as client,
        triton.InferenceServerClient(f"127.0.0.1:{client.base_url.port}") as speaker,
    ):
        assert speaker.is_server_ready()
        assert not speaker.is_model_ready("part")
        assert speaker.is_model_ready("part", headers=bearer(token))


def request(**changes):
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 2, 2], "data": [0.5] * 12}
    return {"inputs": [tensor | changes.pop("tensor", {})], **changes}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        ([], "has no 'inputs'"),
        ({"inputs": []}, "one input, 'image'"),
        (request(tensor={"name": "x"}), "one input, 'image'"),
        (request(tensor={"datatype": "INT8"}), "image is INT8"),
        (request(tensor={"shape": [1, 3, 2]}), "FP32 of shape"),
        (request(tensor={"shape": [0, 3, 2, 2]}), "FP32 of shape"),
        (request(tensor={"shape": [1.0, 3, 2, 2]}), "whole numbers"),
        (request(tensor={"shape": [10**30, 3, 2, 2]}), "its shape needs"),
        (request(tensor={"data": [0.5]}), "image has 1 values"),
        (request(tensor={"data": ["a"] * 12}), "must be numbers"),
        (request(tensor={"data": [[1], [2, 3]]}), "must be numbers"),
        (request(tensor={"data": [2] * 12}), "must lie in"),
        (request(tensor={"data": [float("nan")] * 12}), "must lie in"),
        (request(tensor={"parameters": {"binary_data_size": 48}}), "says 48 bytes and 0 came"),
        (request(tensor={"parameters": {"binary_data_size": "x"}}), "'binary_data_size' is x; int was expected"),
        (request(outputs=[{"name": "x"}]), "no output 'x'"),
        (request(outputs=[7]), "has no 'name'"),
        (request(id=7), "id must be text"),
    ],
)
def test_requests_that_make_no_sense_are_refused(body, said):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(UsageError, match=said):
        open_inference.read(data, None, (2, 2))


@pytest.mark.parametrize("length", ["x", "-1", "99999", "²"])
def test_a_header_length_that_cannot_be_is_refused(length):
    with pytest.raises(UsageError, match="Inference-Header-Content-Length"):
        open_inference.read(json.dumps(request()).encode(), length, (2, 2))


def test_nested_data_is_taken_as_flat():
    nested = request(tensor={"data": np.arange(12).reshape(1, 3, 2, 2).astype(float).__truediv__(12).tolist()})
    read = open_inference.read(json.dumps(nested).encode(), None, (2, 2))
    np.testing.assert_allclose(read.images.ravel(), np.arange(12, dtype=np.float32) / 12)
    assert read.outputs == {"score": False, "anomaly_map": False}


def test_errors_are_problem_documents_too(client):
    said = problem(client.post("/v2/models/part/infer", content=b"{"), 400)
    assert client.post("/v2/models/part/infer", content=b"{").json()["error"] == said


def test_a_model_of_another_aspect_says_height_before_width():
    described = open_inference.metadata("part", ["1"], (8, 40))
    assert described["inputs"][0]["shape"] == [-1, 3, 8, 40]
    assert described["outputs"][1]["shape"] == [-1, 1, 8, 40]


@pytest.mark.parametrize(
    "text",
    [
        b'{"inputs": [' + b"[]," * 100_001 + b"0]}",
        b'{"inputs": [' + b'{"":0},' * 40_000 + b"0]}",
        b'{"inputs": [' + b'"ab",' * 60_000 + b"0]}",
    ],
)
def test_a_request_of_more_lists_objects_and_texts_than_tensors_have_is_not_parsed(text):
    with pytest.raises(UsageError, match="over 100000 lists, objects and texts"):
        open_inference.read(text, None, (2, 2))


def test_json_is_bounded_and_bytes_are_not():
    text, tail = (
        json.dumps(request(tensor={"parameters": {"binary_data_size": 48}})).encode(),
        np.zeros(12, "<f4").tobytes(),
    )
    assert open_inference.read(text + tail, str(len(text)), (2, 2)).images.shape == (1, 3, 2, 2)
    with pytest.raises(TooLargeError, match="16777217 bytes of JSON, at most 16777216 are read: send tensors as bytes"):
        open_inference.read(b" " * (16 * 2**20 + 1), None, (2, 2))


def test_long_answers_are_the_same_json():
    values = np.arange(3 * 300 * 200, dtype=np.float32).reshape(3, 1, 300, 200)
    asked = open_inference.InferenceRequest("7", IMAGES, {"score": False, "anomaly_map": False})
    said, headers = open_inference.write(asked, "part", "1", {"anomaly_map": values, "score": values[:, 0, 0, 0]})
    score, anomaly_map = json.loads(said)["outputs"]
    assert anomaly_map == {
        "name": "anomaly_map", "datatype": "FP32", "shape": [3, 1, 300, 200], "data": values.ravel().tolist(),
    }  # fmt: skip
    assert score["data"] == [0, 60_000, 120_000]
    assert headers == {"Content-Type": "application/json"}


def test_a_request_of_many_images_lets_others_have_their_turn(client, station):
    """Between two of its batches an image is judged: 3 s of batches do not keep it waiting."""
    line = station.line()
    inspector, judged, asked = line.inspector, [], []

    def slowly(each):
        parts = inference._scores(each, np.repeat(IMAGES, 12, 0), 1)
        while True:
            asked.append(len(judged))
            time.sleep(0.05)
            try:
                yield next(parts)
            except StopIteration as ended:
                return ended.value

    future = line.run_in_turn(slowly)
    judged.append(client.post("/inspect", content=GOOD).json()["verdict"])
    result = future.result(30)
    assert judged == ["pass"]
    assert asked[-1] == 1  # there were batches after it
    np.testing.assert_allclose(result["score"], np.repeat(inspector.scores(IMAGES).image, 12), rtol=1e-6)
