"""Model folders: every byte checked by name, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import tiny_model
from makel.errors import ModelFolderError
from makel.model import folder
from makel.model.folder import check_target, open_folder, staging
from makel.model.folder import write as write_folder
from makel.model.inspector import Inspector
from makel.model.manifest import Manifest

NAMES = [
    "golden/000.npz",
    "golden/001.npz",
    "log.jsonl",
    "model.json",
    "model.onnx",
    "report.html",
    "weights.safetensors",
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model.write(tmp_path / "model")


def names(path: Path) -> list[str]:
    return sorted(item.relative_to(path).as_posix() for item in path.rglob("*") if item.is_file())


def leftovers(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir() if item.name.startswith("."))


def test_write_then_open(model: Path) -> None:
    opened = open_folder(model)
    assert names(model) == NAMES
    assert sorted(opened.manifest.files) == [name for name in NAMES if name != "model.json"]
    assert opened.read("model.onnx") == (model / "model.onnx").read_bytes()
    assert leftovers(model.parent) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_model_folder_is_as_open_as_any_other(model: Path) -> None:
    other = model.parent / "other"
    other.mkdir()
    assert model.stat().st_mode == other.stat().st_mode


def test_same_content_gives_the_same_folder(tmp_path: Path) -> None:
    one, two = tiny_model.write(tmp_path / "one"), tiny_model.write(tmp_path / "two")
    assert {name: (one / name).read_bytes() for name in NAMES} == {name: (two / name).read_bytes() for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_one_flipped_byte_in_any_file_is_refused_by_name(model: Path, name: str, where: float) -> None:
    path = model / name
    data = bytearray(path.read_bytes())
    data[round(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFolderError) as caught:
        Inspector.load(model)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_refused_by_name(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(ModelFolderError, match=Path(name).name):
        open_folder(model)


@pytest.mark.parametrize("name", ["extra.txt", "golden/002.npz", "sub/deep.bin", ".hidden"])
def test_an_extra_file_is_refused_by_name(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"x")
    with pytest.raises(ModelFolderError, match="no part of this model") as caught:
        open_folder(model)
    assert str(model / name) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_emptied_file_is_refused_by_name(model: Path, name: str) -> None:
    (model / name).write_bytes(b"")
    with pytest.raises(ModelFolderError, match=Path(name).name):
        open_folder(model)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_link_is_refused_even_to_the_same_bytes(model: Path, tmp_path: Path) -> None:
    shutil.move(model / "model.onnx", tmp_path / "elsewhere.onnx")
    (model / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ModelFolderError, match=r"model\.onnx is a link"):
        open_folder(model)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_without_waiting_for_it(model: Path) -> None:
    os.mkfifo(model / "pipe")
    with pytest.raises(ModelFolderError, match="pipe is a link or a special file"):
        open_folder(model)


def test_an_unreadable_file_is_refused_by_name(model: Path, monkeypatch) -> None:
    real = os.open

    def denied(path, *args, **kwargs):
        if Path(path).name == "report.html":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)  # a mode would not stop root
    with pytest.raises(ModelFolderError, match=r"report\.html cannot be read: Permission denied"):
        open_folder(model)


def test_without_verify_the_model_itself_is_still_checked(model: Path) -> None:
    (model / "log.jsonl").write_bytes(b"changed")
    opened = open_folder(model, verify=False)
    with pytest.raises(ModelFolderError, match=r"log\.jsonl was changed"):
        opened.read("log.jsonl")
    (model / "model.onnx").write_bytes(tiny_model.onnx_bytes(gain=2.0))
    with pytest.raises(ModelFolderError, match=r"model\.onnx was changed"):
        Inspector.load(model, verify=False)


def test_bytes_swapped_after_the_check_never_reach_the_session(model: Path) -> None:
    opened = open_folder(model)
    (model / "model.onnx").write_bytes(tiny_model.onnx_bytes(gain=2.0))
    with pytest.raises(ModelFolderError, match=r"model\.onnx was changed"):
        opened.read("model.onnx")


@pytest.mark.parametrize("name", ["nothing.txt", "model.json", "../model/model.onnx"])
def test_only_listed_files_are_read(model: Path, name: str) -> None:
    with pytest.raises(ModelFolderError, match="is not a file of model"):
        open_folder(model).read(name)


def test_what_is_no_model_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="does not exist: give the model folder"):
        open_folder(tmp_path / "absent")
    with pytest.raises(ModelFolderError, match=r"holds no model\.json"):
        open_folder(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelFolderError, match="is a file"):
        open_folder(tmp_path / "file")


def test_writing_again_replaces_the_model(model: Path) -> None:
    before = open_folder(model).manifest.model_id
    tiny_model.write(model, false_reject=0.5)
    assert open_folder(model).manifest.model_id != before
    assert names(model) == NAMES
    assert leftovers(model.parent) == []


def test_a_damaged_model_may_be_replaced(model: Path) -> None:
    (model / "model.onnx").write_bytes(b"")
    (model / "report.html").unlink()
    tiny_model.write(model)
    assert names(model) == NAMES
    open_folder(model)


def test_an_empty_folder_may_become_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    open_folder(tiny_model.write(tmp_path / "model"))


def test_parents_are_made(tmp_path: Path) -> None:
    open_folder(tiny_model.write(tmp_path / "a" / "b" / "model"))


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_linked_target_keeps_its_link(model: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(model, target_is_directory=True)
    tiny_model.write(tmp_path / "current", false_reject=0.5)
    assert (tmp_path / "current").is_symlink()
    assert open_folder(tmp_path / "current").manifest == open_folder(model).manifest


def photos(path: Path) -> None:
    path.mkdir()
    (path / "holiday.jpg").write_bytes(b"precious")


def foreign_json(path: Path) -> None:
    path.mkdir()
    (path / "model.json").write_text('{"files": {"holiday.jpg": ""}}')
    (path / "holiday.jpg").write_bytes(b"precious")


def annotated_model(path: Path) -> None:
    tiny_model.write(path)
    (path / "holiday.jpg").write_bytes(b"precious")


@pytest.mark.parametrize("make", [photos, foreign_json, annotated_model])
def test_nothing_is_deleted_that_makel_did_not_write(tmp_path: Path, make) -> None:
    make(tmp_path / "target")
    with pytest.raises(ModelFolderError, match=r"holds (holiday\.jpg|model\.json).*nothing is deleted"):
        tiny_model.write(tmp_path / "target")
    with pytest.raises(ModelFolderError):
        check_target(tmp_path / "target")
    assert (tmp_path / "target" / "holiday.jpg").read_bytes() == b"precious"
    assert leftovers(tmp_path) == []


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"precious")
    with pytest.raises(ModelFolderError, match="is a file"):
        tiny_model.write(tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == b"precious"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_fit_leaves_the_old_model_and_nothing_else(model: Path, error) -> None:
    before = {name: (model / name).read_bytes() for name in NAMES}

    def interrupted() -> None:
        with staging(model) as stage:
            tiny_model.fill(stage)
            raise error

    with pytest.raises(error):
        interrupted()
    assert {name: (model / name).read_bytes() for name in NAMES} == before
    assert leftovers(model.parent) == []


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(
    ("error", "seen"), [(PermissionError(13, "in use"), ModelFolderError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_rename_that_fails_gives_the_old_model_back(model: Path, monkeypatch, failing: int, error, seen) -> None:
    before = open_folder(model).manifest
    calls, rename = [], Path.rename

    def rename_but_one(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == failing + 1:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_but_one)
    with pytest.raises(seen, match=r"cannot be replaced \(in use\)" if seen is ModelFolderError else None):
        tiny_model.write(model, false_reject=0.5)
    assert open_folder(model).manifest == before
    assert leftovers(model.parent) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import tiny_model
target, step = Path(sys.argv[1]), sys.argv[2]
real = Path.rename
count = 0
def rename(self, to):
    global count
    if step == f"before rename {count}":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(self, to)
    count += 1
    return result
Path.rename = rename
import makel.model.folder as folder
if step == "while filling":
    tiny_model.golden.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if step == "while deleting":
    unlink = Path.unlink
    def unlink_once(self, **options):
        unlink(self, **options)
        if ".old-" in str(self.parent):
            os.kill(os.getpid(), signal.SIGKILL)
    Path.unlink = unlink_once
tiny_model.write(target, false_reject=0.5)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("step", "stands"),
    [
        ("while filling", "old"),
        ("before rename 0", "old"),
        ("before rename 1", "neither, until the next write"),
        ("while deleting", "new"),
    ],
)
def test_kill_9_at_any_step_leaves_a_whole_model(model: Path, step: str, stands: str) -> None:
    old = open_folder(model).manifest.model_id
    script = [sys.executable, "-c", textwrap.dedent(KILLED), str(model), step]
    done = subprocess.run(script, cwd=Path(__file__).parent, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if stands == "neither, until the next write":
        with pytest.raises(
            ModelFolderError, match=r"was being replaced when the machine stopped; rename .*\.model\.old-"
        ):
            open_folder(model)
        folder.recover(model)
    assert (open_folder(model).manifest.model_id == old) == (stands != "new")
    with staging(model):
        pass
    assert [name for name in leftovers(model.parent) if ".old-" in name] == []
    assert (open_folder(model).manifest.model_id == old) == (stands != "new")


def test_a_dead_fit_is_swept_and_a_running_one_left(model: Path) -> None:
    dead, running = (model.with_name(f".model.partial-{use * 20}") for use in ("d", "e"))
    for stage in (dead, running):
        stage.mkdir()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(dead, (two_days_ago, two_days_ago))
    with staging(model) as stage:
        assert sorted(leftovers(model.parent)) == sorted([".model.lock", running.name, stage.name])
    assert leftovers(model.parent) == [running.name]


def test_the_rest_of_a_deleted_model_is_not_brought_back(model: Path) -> None:
    rest = model.with_name(".model.old-" + "0123456789" * 2)
    model.rename(rest)
    (rest / "model.onnx").unlink()
    folder.recover(model)
    assert list(model.parent.glob("*model*")) == []


def test_siblings_of_another_model_are_left_alone(model: Path) -> None:
    other = model.with_name(".model2.old-" + "0123456789" * 2)
    other.mkdir()
    folder.recover(model)
    assert other.is_dir()


def test_manifest_is_written_last(tmp_path: Path, monkeypatch) -> None:
    """A staging folder with a manifest is a whole model."""

    def stop(*_):
        raise RuntimeError("stopped while hashing")

    monkeypatch.setattr(Manifest, "seal", stop)
    with staging(tmp_path / "model") as stage:
        tiny_model.fill(stage)
        with pytest.raises(RuntimeError, match="stopped while hashing"):
            write_folder(tmp_path / "model", stage, tiny_model.draft())
        assert not (stage / "model.json").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["backup", "12345678", "2026-01-31", "0123456789" * 2])
def test_a_folder_that_only_has_such_a_name_is_left_alone(model: Path, ending: str) -> None:
    notes = model.with_name(f".model.old-{ending}")
    notes.mkdir()
    (notes / "notes.txt").write_text("mine", encoding="utf-8")
    copy = model.with_name(".model.old-20260131")
    shutil.copytree(model, copy)
    tiny_model.write(model, false_reject=0.5)
    assert (notes / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert open_folder(copy).manifest != open_folder(model).manifest


def test_a_file_of_somebody_among_those_of_an_old_model_is_left(model: Path) -> None:
    old = model.with_name(".model.old-" + "0123456789" * 2)
    shutil.copytree(model, old)
    (old / "notes.txt").write_text("mine", encoding="utf-8")
    tiny_model.write(model, false_reject=0.5)
    assert [path.name for path in old.iterdir()] == ["notes.txt"]


def test_an_empty_folder_in_the_target_stays(model: Path) -> None:
    (model / "photos" / "monday").mkdir(parents=True)
    with pytest.raises(ModelFolderError, match="holds photos/, which is no part of a model"), staging(model):
        pass
    assert (model / "photos" / "monday").is_dir()


def test_an_empty_target_is_replaced_without_a_trace(model: Path) -> None:
    empty = model.with_name("empty")
    empty.mkdir()
    tiny_model.write(empty)
    assert open_folder(empty).manifest.model_id
    assert leftovers(model.parent) == []


def test_two_writers_of_one_folder_cannot_meet(model: Path) -> None:
    with staging(model):
        with pytest.raises(ModelFolderError, match="is being written by another fit"), staging(model):
            pass
        with staging(model.with_name("other")):
            pass
    with staging(model):
        pass
    assert leftovers(model.parent) == []


@pytest.mark.skipif(os.name == "nt", reason="needs a limit that the system sets on files")
def test_a_full_disk_names_the_folder(model: Path) -> None:
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ModelFolderError, match=r"model cannot be written: File too large"), staging(model) as stage:
            (stage / "model.onnx").write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert leftovers(model.parent) == []
