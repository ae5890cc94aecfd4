"""Whatever is wrong with one model folder: one line that names it, quickly and in little memory."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import sys
import time
import zipfile
import zlib
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import tiny_model
from makel.errors import ModelFolderError
from makel.images import Preparation
from makel.model import folder, golden
from makel.model.folder import open_folder
from makel.model.inspector import Inspector
from makel.model.manifest import Manifest
from makel.model.session import open_session
from makel.model.zones import Zone, Zones
from makel.station.registry import ACTIVE_NAME
from makel.station.station import Settings, Station
from tiny_model import SIZE, onnx_bytes

HUGE_BYTES = 20 * 2**30


def sealed(target: Path, change=lambda stage: None, **changes) -> None:
    """A folder whose hashes are all right, after `change(stage)`."""
    with folder.staging(target) as stage:
        tiny_model.fill(stage)
        change(stage)
        folder.write(target, stage, tiny_model.draft(**changes))


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE_BYTES)


def manifest_of(text: bytes):
    def make(target: Path) -> None:
        tiny_model.write(target)
        (target / "model.json").write_bytes(text)

    return make


def with_file(name: str, spoil):
    """A sound folder of which one file was spoiled afterwards."""

    def make(target: Path) -> None:
        tiny_model.write(target)
        (target / name).unlink(missing_ok=True)
        (target / name).parent.mkdir(exist_ok=True)
        spoil(target / name)

    return make


def with_network(change):
    def make(target: Path) -> None:
        model = onnx.load_from_string(onnx_bytes())
        change(model)
        sealed(target, lambda stage: (stage / "model.onnx").write_bytes(model.SerializeToString()))

    return make


def only_two(model: onnx.ModelProto) -> None:
    """ONNX Runtime loads it, and cannot run it with one image."""
    node = next(node for node in model.graph.node if "score" in node.output)
    node.output[:] = ["own"]
    model.graph.initializer.append(numpy_helper.from_array(np.int64([2]), "two"))
    model.graph.node.append(helper.make_node("Reshape", ["own", "two"], ["score"]))


def with_golden(data: bytes):
    return lambda target: sealed(target, lambda stage: (stage / "golden/000.npz").write_bytes(data))


def archive(**arrays) -> bytes:
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()


def golden_bomb() -> bytes:
    """Three gigabytes of zeros as an image, in three megabytes."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (3, 32768, 32768)}
        )
        with zipped.open("image.npy", "w") as file:
            file.write(header.getvalue())
            for _ in range(48):  # enough to tell
                file.write(bytes(2**20))
        zipped.writestr("score.npy", b"")
        zipped.writestr("anomaly_map.npy", b"")
    return data.getvalue()


IMAGE, MAP = np.zeros((3, SIZE, SIZE), np.uint8), np.zeros((1, SIZE, SIZE), np.float32)
DAMAGED = bytearray(archive(image=IMAGE, score=np.float32(0), anomaly_map=MAP))
DAMAGED[60] ^= 0xFF


def mask_head(side: int) -> str:
    """The head of a PNG of so many pixels a side, in base64."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b64encode(png + bytes(60)).decode()


def with_text(old: bytes, new: bytes):
    """A manifest that seals itself, after one of its values was replaced by another."""

    def make(target: Path) -> None:
        tiny_model.write(target)
        text = (target / "model.json").read_bytes()
        assert text.count(old) == 1
        (target / "model.json").write_bytes(text.replace(old, new))

    return make


def zones(**changes) -> Zones:
    whole = Zone(name="a", kind="ignore", polygon=((0, 0), (10, 0), (10, 10), (0, 10)))
    return Zones(image_size_px=(10, 10), zones=(whole.model_copy(update=changes),))


def link_to_secret(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def linked_golden(target: Path) -> None:
    tiny_model.write(target)
    shutil.move(target / "golden", target.with_name("elsewhere"))
    (target / "golden").symlink_to(target.with_name("elsewhere"), target_is_directory=True)


def deep(target: Path) -> None:
    tiny_model.write(target)
    (target / "/".join(["d"] * 50)).mkdir(parents=True)


def many(target: Path) -> None:
    tiny_model.write(target)
    (target / "more").mkdir()
    for number in range(1001):
        (target / f"more/{number}").touch()


FAULTS = {
    "nested brackets": (manifest_of(b"[" * 200_000), r"more than any model says|nested too deeply"),
    "nested brackets, fewer": (manifest_of(b"[" * 90_000), "nested too deeply"),
    "nested objects": (manifest_of(b'{"a":' * 50_000), "nested too deeply"),
    "a sparse manifest": (with_file("model.json", sparse), r"model\.json has 21474836480 bytes"),
    "a long manifest": (
        with_file("model.json", lambda path: path.write_bytes(b" " * (16 * 2**20 + 1))),
        "has 16777217",
    ),
    "many lists": (manifest_of(b"[" + b"[]," * 200_000 + b"0]"), "more than any model says"),
    "a long number": (manifest_of(b"1" * 100_000), "not JSON"),
    "no text": (manifest_of(b"\xff\xfe\x00"), "not JSON"),
    "nothing": (manifest_of(b""), "not JSON"),
    "a list": (manifest_of(b"[]"), "schema version None"),
    "a number": (manifest_of(b"7"), "schema version None"),
    "null": (manifest_of(b"null"), "schema version None"),
    "wrong types": (manifest_of(b'{"schema_version": 1, "method": 7, "files": []}'), "damaged or changed"),
    "an infinite number": (with_text(b'"n_fit": 12', b'"n_fit": 1e999'), "damaged or changed"),
    "no number": (with_text(b'"score_tolerance": 1e-05', b'"score_tolerance": NaN'), "damaged or changed"),
    "half a character": (with_text(b'"data_name": "tiny"', b'"data_name": "\\ud800"'), "damaged|changed after fitting"),
    "a folder for the manifest": (with_file("model.json", Path.mkdir), r"holds no model\.json"),
    "a link to a file of the machine": (with_file("model.json", link_to_secret), r"model\.json is a link"),
    "a link to a device": (with_file("model.json", lambda path: path.symlink_to("/dev/zero")), "is a link"),
    "a link for the network": (with_file("model.onnx", link_to_secret), r"model\.onnx is a link"),
    "a link for a folder": (linked_golden, "golden is a link"),
    "a FIFO": (with_file("model.json", os.mkfifo), r"model\.json is a link or a special file"),
    "folders in folders": (deep, "folders deeper than"),
    "many files": (many, "more than 1000 files"),
    "a sparse network": (with_file("model.onnx", sparse), r"model\.onnx has 21474836480 bytes"),
    "a sparse report": (with_file("report.html", sparse), r"report\.html has 21474836480 bytes"),
    "a network that cannot be run": (with_network(only_two), r"model\.onnx cannot be run"),
    "a network that is none": (
        lambda target: sealed(target, lambda stage: (stage / "model.onnx").write_bytes(b"\x00" * 100)),
        "no ONNX file",
    ),
    "golden, unpacked larger": (with_golden(golden_bomb()), "is not a golden image"),
    "golden, no archive": (with_golden(b"PK\x03\x04" + bytes(100)), "is not a golden image"),
    "golden, cut": (with_golden(bytes(DAMAGED[:200])), "is not a golden image"),
    "golden, damaged": (with_golden(bytes(DAMAGED)), "is not a golden image"),
    "golden, an object": (
        with_golden(archive(image=np.array([{}]), score=np.float32(0), anomaly_map=MAP)),
        "is not a golden image",
    ),
    "golden, another size": (
        with_golden(archive(image=IMAGE[:, 1:], score=np.float32(0), anomaly_map=MAP)),
        "expected",
    ),
    "golden, another type": (
        with_golden(archive(image=IMAGE.astype(np.int8), score=np.float32(0), anomaly_map=MAP)),
        "expected uint8",
    ),
    "golden, other scores": (with_golden(archive(image=IMAGE, score=np.float32([1, 2]), anomaly_map=MAP)), "expected"),
    "golden, another map": (with_golden(archive(image=IMAGE, score=np.float32(0), anomaly_map=MAP[0])), "expected"),
    "golden, more": (with_golden(archive(image=IMAGE, score=np.float32(0), anomaly_map=MAP, more=MAP)), "not a golden"),
    "no golden": (
        lambda target: sealed(target, lambda stage: shutil.rmtree(stage / "golden")),
        "holds no golden images",
    ),
    "zones that leave nothing": (lambda target: sealed(target, zones=zones()), "leave nothing to inspect"),
    "zones without a place": (lambda target: sealed(target, zones=zones(polygon=None)), "cannot be used"),
    "a mask that is no picture": (
        lambda target: sealed(target, zones=zones(polygon=None, mask_png="A" * 40)),
        "mask_png.*no PNG",
    ),
    "a mask that is no base64": (
        lambda target: sealed(target, zones=zones(polygon=None, mask_png="!" * 40)),
        "mask_png",
    ),
    "a mask of a million by a million": (
        lambda target: sealed(target, zones=zones(polygon=None, mask_png=mask_head(10**6))),
        "mask_png.*more than the 200000000",
    ),
    "a mask with nothing behind its head": (
        lambda target: sealed(target, zones=zones(polygon=None, mask_png=mask_head(10))),
        "cannot be used",
    ),
    "zones on a picture that is too large": (
        with_text(b'"zones": null', b'"zones": {"image_size_px": [100000, 100000]}'),
        "image_size_px.*more than the 200000000",
    ),
    "an input that is too large": (with_text(b'"height": 16', b'"height": 16000000'), "no model takes 16 x 16000000"),
    "an input of nothing": (with_text(b'"height": 16', b'"height": 0'), "no model takes 16 x 0"),
    "an input of another size": (
        lambda target: sealed(target, preprocessing=Preparation(2 * SIZE, SIZE, "rgb")),
        r"takes images of 16 x 16 px, and model\.json says 16 x 32 px",
    ),
    "a white of zero": (with_text(b'"white_level": null', b'"white_level": 0'), "white_level 0"),
    "PyTorch's runtime and other settings": (
        lambda target: sealed(
            target,
            runtime="torch",
            backbone=None,
            method=tiny_model.manifest.Method(name="anogan", preset="fast", config={"size": "x", "width": []}),
        ),
        "size 'x'|cannot be used|does not fit",
    ),
}
if os.name == "nt" or not hasattr(os, "mkfifo"):
    FAULTS = {name: fault for name, fault in FAULTS.items() if "link" not in name and "FIFO" not in name}


def load(target: Path) -> Inspector:
    """As the station does it."""
    opened = open_folder(target)
    runner = open_session(opened, threads=1)
    golden.replay(opened, runner)
    return Inspector(opened, runner)


def peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.parametrize("name", FAULTS)
def test_one_line_names_the_folder_soon_and_in_little_memory(tmp_path: Path, name: str) -> None:
    make, reason = FAULTS[name]
    make(tmp_path / "model")
    before_mb, began = peak_mb(), time.process_time()
    with pytest.raises(ModelFolderError, match=reason) as caught:
        load(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500
    assert time.process_time() - began < 5
    assert peak_mb() - before_mb < 300


def test_a_sound_folder_is_none_of_them(tmp_path: Path) -> None:
    sealed(tmp_path / "model")
    assert load(tmp_path / "model").model_id == open_folder(tmp_path / "model").manifest.model_id


def test_what_nobody_thought_of_is_the_folders_fault_too(tmp_path: Path, monkeypatch) -> None:
    tiny_model.write(tmp_path / "model")
    for error in (MemoryError(), RecursionError("too deep"), ZeroDivisionError("x\ny")):
        with monkeypatch.context() as patched:
            patched.setattr(Manifest, "from_bytes", lambda *_, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(ModelFolderError, match=rf"model cannot be used \({type(error).__name__}.*\): rest"):
                open_folder(tmp_path / "model")


def test_a_file_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    opened = open_folder(tiny_model.write(tmp_path / "model"))
    (tmp_path / "model/log.jsonl").rename(tmp_path / "log.jsonl")
    (tmp_path / "model/log.jsonl").symlink_to(tmp_path / "log.jsonl")  # the very bytes
    with pytest.raises(ModelFolderError, match=r"log\.jsonl cannot be read"):
        opened.read("log.jsonl")


STATES = {
    "deep": b"[" * 200_000,
    "a list": b"[]",
    "no numbers": b'{"active": "x", "before": []}',
    "infinite": b'{"active": 1e999, "before": []}',
    "a version that is not there": b'{"active": 7, "before": []}',
}


def test_a_station_serves_the_others_and_says_which_it_could_not_open(tmp_path: Path) -> None:
    """Every fault at once, each in a model of its own, and one sound model."""
    models, broken = tmp_path / "station/models", {}
    for number, name in enumerate(FAULTS):
        FAULTS[name][0](models / f"m{number}" / "1")
        broken[f"m{number}"] = b'{"active": 1, "before": []}'
    for name, state in STATES.items():
        tiny_model.write(models / name.replace(" ", "-") / "1")
        broken[name.replace(" ", "-")] = state
    for name, state in broken.items():
        (models / name / ACTIVE_NAME).write_bytes(state)
    tiny_model.write(models / "empty/1")
    sparse(models / "empty" / ACTIVE_NAME)
    tiny_model.write(models / "sound/1")
    (models / "sound" / ACTIVE_NAME).write_bytes(b'{"active": 1, "before": []}')
    (models / "a-file").write_text("x")
    with Station.open(tmp_path / "station", replace(Settings(), threads=1)) as station:
        assert station.models() == ["sound"]
        assert station.obstacles() == []
        found = station.warnings()
        for name in (*broken, "empty"):
            (one,) = [line for line in found if line.startswith(f"{name} is not served: ")]
            assert "\n" not in one
            with pytest.raises(ModelFolderError, match="is not served"):
                station.line(name)
        picture = tmp_path / "picture.bmp"
        picture.write_bytes(bitmap())
        assert station.decide(picture.read_bytes(), model="sound", source="http").decision.reason == ""
        described = {each["name"]: each for each in listed(station)}
        assert set(described) == {*broken, "empty", "sound"}
        assert described["sound"]["problem"] == ""
        assert all(described[name]["problem"] for name in (*broken, "empty"))


def listed(station: Station) -> list[dict]:
    """What GET /models says."""
    from fastapi.testclient import TestClient

    from makel.station.access import Access, Tokens
    from makel.station.service import create_app

    app = create_app(station, Access.on("127.0.0.1", Tokens(station.folder / "tokens.json"), token_needed=False))
    answer = TestClient(app, base_url="http://127.0.0.1").get("/models")
    assert answer.status_code == 200, answer.text
    return json.loads(answer.content)["models"]


def bitmap() -> bytes:
    import cv2

    return cv2.imencode(".bmp", np.full((48, 80, 3), 128, np.uint8))[1].tobytes()
