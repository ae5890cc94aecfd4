"""What a model's graph may hold: makel's own exports, and nothing that reads files, loops or comes from elsewhere."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import tiny_model
from makel.errors import ModelFolderError
from makel.model.graph import OPERATORS, check_graph
from makel.model.inspector import Inspector
from makel.model.session import Session
from makel.training.backbones import Backbone, _settle, architecture, dense_architecture
from makel.training.export import trace
from makel.training.facts import FACTS, VGG19_DFR, facts_of
from tiny_model import onnx_bytes

EARLIER = {
    "fast exporter": "Exp Reciprocal Flatten Gather TopK ConvTranspose BatchNormalization InstanceNormalization Cast",
    "dynamo exporter": "Clip Greater Where Shape Squeeze ReduceMin Split Softplus AveragePool GatherND Pad Pow MaxPool",
}
"""Operators of model folders that earlier makels wrote, by what exported them."""


def changed(change) -> bytes:
    """The tiny model's file after `change(model)`."""
    model = onnx.load_from_string(onnx_bytes())
    change(model)
    return model.SerializeToString()


def outside(tensor: onnx.TensorProto, place: str) -> onnx.TensorProto:
    """The tensor as one whose numbers are in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return tensor


def a_tensor() -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros(4, np.float32), "secret")


def constant(**values) -> onnx.NodeProto:
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(helper.make_attribute("value", a_tensor()))
    for name, value in values.items():
        node.attribute.append(helper.make_attribute(name, value))
    return node


def inner(*nodes: onnx.NodeProto, tensor: onnx.TensorProto | None = None) -> onnx.GraphProto:
    return helper.make_graph(nodes, "inner", [], [], [tensor] if tensor else [])


def add(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    model.graph.node.extend(nodes)


def place_only(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def name_only(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def attribute_tensor(model: onnx.ModelProto) -> None:
    node = constant()
    outside(node.attribute[0].t, "/etc/passwd")
    add(model, node)


def attribute_tensors(model: onnx.ModelProto) -> None:
    add(model, constant(values=[a_tensor(), outside(a_tensor(), "../../etc/passwd")]))


def graph_in_allowed(model: onnx.ModelProto) -> None:
    add(model, constant(body=inner(constant())))


def graphs_in_allowed(model: onnx.ModelProto) -> None:
    node = constant()
    attribute = node.attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.append(inner(tensor=outside(a_tensor(), "/etc/passwd")))
    add(model, node)


def function(model: onnx.ModelProto) -> None:
    model.functions.append(
        helper.make_function("", "Relu", ["x"], ["y"], [helper.make_node("Loop", ["x"], ["y"])], model.opset_import)
    )


def sparse(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.float32([1]), "v")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.int64([0]), "i"), [4])
    )


def training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.node.append(helper.make_node("Loop", [], []))


def node(operator: str, domain: str = ""):
    return lambda model: add(model, helper.make_node(operator, ["image"], ["x"], domain=domain))


HOSTILE = {
    "another place": (place_only, "keeps weights in another file"),
    "another name": (name_only, "keeps weights in another file"),
    "an attribute's tensor": (attribute_tensor, "keeps weights in another file"),
    "an attribute's second tensor": (attribute_tensors, "keeps weights in another file"),
    "a graph of an operator that has none": (graph_in_allowed, "a graph within its graph"),
    "graphs of an operator that has none": (graphs_in_allowed, "a graph within its graph"),
    "a function under an allowed name": (function, "functions of its own"),
    "sparse weights": (sparse, "a field 15 in a graph"),
    "training": (training, "a field 20 in a model"),
    "loop": (node("Loop"), "operator 'Loop'"),
    "scan": (node("Scan"), "operator 'Scan'"),
    "if": (node("If"), "operator 'If'"),
    "map over a sequence": (node("SequenceMap"), "operator 'SequenceMap'"),
    "another case": (node("relu"), "operator 'relu'"),
    "no operator": (node(""), "operator ''"),
    "another maker": (node("Relu", "com.microsoft"), "operators of 'com.microsoft'"),
    "classical learning": (node("Relu", "ai.onnx.ml"), "operators of 'ai.onnx.ml'"),
    "another maker's set": (
        lambda model: model.opset_import.append(helper.make_opsetid("com.evil", 1)),
        "operators of 'com.evil'",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_makel_does_not_export_is_refused_before_it_is_loaded(kind, monkeypatch) -> None:
    change, reason = HOSTILE[kind]
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ModelFolderError, match=rf"^part/model\.onnx .*{reason}.* no model of makel does"):
        Session(changed(change), name="part/model.onnx")


def test_makels_own_pass() -> None:
    check_graph(onnx_bytes(), "model.onnx")
    assert "ai.onnx" not in OPERATORS
    explicit = changed(lambda model: setattr(model.graph.node[0], "domain", "ai.onnx"))
    check_graph(explicit, "model.onnx")
    assert not OPERATORS & {"Loop", "Scan", "If", "SequenceMap", "Optional", "RandomNormal", "Multinomial"}


@pytest.mark.parametrize("era", EARLIER)
def test_operators_of_folders_fitted_before_are_still_run(era) -> None:
    assert set(EARLIER[era].split()) <= OPERATORS


@pytest.mark.parametrize("name", [*(facts.name for facts in FACTS if facts.name != "resnext101"), VGG19_DFR])
def test_the_operators_of_every_backbone_are_among_them(name, tmp_path, one_thread) -> None:
    """Without weights, which only some of them have here; the operators are the same."""
    facts = facts_of(name)
    network, channels, strides = (dense_architecture if name == VGG19_DFR else architecture)(facts, (2,))
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for value in network.state_dict().values():
            value.fill_(0.1 if value.is_floating_point() else 0)
    wrapped = Backbone.wrap(_settle(network), name=name, channels=channels, strides=strides)
    trace(wrapped, tmp_path / "model.onnx", (32, 32), ("features",))
    check_graph((tmp_path / "model.onnx").read_bytes(), name)


class TestBytes:
    """The file as somebody writes it by hand."""

    def test_the_second_of_two_operators_counts_too(self) -> None:
        """Readers take the last of a field that is there twice; here none may be another."""
        own = onnx.load_from_string(onnx_bytes())
        for first, second in ((b"Relu", b"Loop"), (b"Loop", b"Relu")):
            twice = b"".join(b"\x22\x04" + text for text in (first, second))
            graph = b"\x0a" + bytes([len(twice)]) + twice
            with pytest.raises(ModelFolderError, match="operator 'Loop'"):
                check_graph(own.SerializeToString() + b"\x3a" + bytes([len(graph)]) + graph, "model.onnx")

    def test_a_second_graph_is_merged_into_the_first_by_readers_and_looked_at_here(self) -> None:
        more = helper.make_graph([helper.make_node("Loop", [], [])], "more", [], []).SerializeToString()
        with pytest.raises(ModelFolderError, match="operator 'Loop'"):
            check_graph(onnx_bytes() + b"\x3a" + bytes([len(more)]) + more, "model.onnx")

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "it holds no graph"),
            (b"\x08\x09", "it holds no graph"),
            (b"\x3a\x05abc", "ends in the middle of a field"),
            (b"\x3a", "ends in the middle of a number"),
            (b"\x38\x01", "another type than ONNX gives it"),
            (b"\x3b", "unknown type 3"),
            (b"\x00\x00", "a field 0"),
            (b"\x08" + b"\xff" * 10, "more than 64 bits"),
            (b"\xfa\xff\xff\xff\x7f\x00", r"a field \d+"),
            (b"\x09\x00\x00", "ends in the middle of a field"),
            (b"\x0d\x00\x00", "ends in the middle of a field"),
            (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "ends in the middle of a field"),
        ],
    )
    def test_malformed_bytes_have_their_reason(self, data, reason) -> None:
        with pytest.raises(ModelFolderError, match=rf"^model\.onnx is no ONNX file: .*{reason}") as caught:
            check_graph(data, "model.onnx")
        assert "\n" not in str(caught.value)

    def test_numbers_of_fixed_width_are_passed_over(self) -> None:
        check_graph(b"\x29" + bytes(8) + b"\x2d" + bytes(4) + onnx_bytes(), "model.onnx")

    def test_no_cut_and_no_changed_byte_does_more_than_be_refused(self) -> None:
        whole, draw = onnx_bytes(), random.Random(0)
        for length in range(len(whole)):
            try_out(whole[:length])
        for _ in range(500):
            data = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            try_out(bytes(data))

    def test_every_field_counts_once(self, monkeypatch) -> None:
        def fields(model: bytes) -> int:
            for most in range(1000):
                monkeypatch.setattr("makel.model.graph._MOST_FIELDS", most)
                with suppress(ModelFolderError):
                    check_graph(model, "model.onnx")
                    return most
            raise AssertionError("it has more")

        assert fields(onnx_bytes() + b"\x28\x00" * 3) == fields(onnx_bytes()) + 3

    def test_a_flood_of_fields_ends_soon(self) -> None:
        began = time.process_time()
        with pytest.raises(ModelFolderError, match="more than 500000 fields"):
            check_graph(b"\x08\x00" * 5_000_000, "model.onnx")
        assert time.process_time() - began < 5


def try_out(data: bytes) -> None:
    with suppress(ModelFolderError):
        check_graph(data, "model.onnx")


def test_a_consistent_folder_cannot_have_a_file_of_the_machine_read(tmp_path: Path) -> None:
    """Every hash is right: the folder was made to look like that."""
    secret = tmp_path / "secret"
    secret.write_bytes(np.float32([7.0]).tobytes())

    def read_it(model: onnx.ModelProto) -> None:
        tensor = next(item for item in model.graph.initializer if item.name == "gain")
        outside(tensor, str(secret.relative_to("/")))

    model = tiny_model.write(tmp_path / "model", model=changed(read_it))
    with pytest.raises(ModelFolderError, match=r"model\.onnx keeps weights in another file"):
        Inspector.load(model)
