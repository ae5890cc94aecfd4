"""The command line: whole output and exit code."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import makel.cli.extras
import tiny_model
from makel.cli.fit import parse_size
from makel.cli.progress import Bars, count
from makel.cli.share import share
from makel.errors import DatasetError, UsageError
from makel.model.folder import open_folder

MAKEL = [sys.executable, "-m", "makel"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that scores the distance from mid grey and rejects above 0.3."""
    return tiny_model.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def parts(tmp_path):
    """Two parts: a good one, and one with a bright square over x 20..40, y 12..24."""
    folder = tmp_path / "parts"
    folder.mkdir()
    good = np.full((48, 80, 3), 128, np.uint8)
    defect = good.copy()
    defect[12:24, 20:40] = 255
    for name, image in (("good", good), ("spot", defect)):
        (folder / f"{name}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return folder


class TestUsage:
    def test_without_arguments_it_shows_the_help(self, makel_says):
        code, out, err = makel_says()
        assert (code, err) == (0, "")
        for command in ("demo", "fit", "evaluate", "inspect", "verify", "info", "weights"):
            assert f" {command} " in out
        assert makel_says("--help") == (0, out, "")

    def test_help_is_quick(self):
        def seconds():
            start = time.perf_counter()
            subprocess.run([*MAKEL, "--help"], check=True, capture_output=True)
            return time.perf_counter() - start

        assert (
            min(seconds() for _ in range(3)) < 0.8
        )  # 0.2 s on an idle machine; with numpy in it, it would be 0.5 more

    def test_version(self, makel_says):
        assert makel_says("--version") == (0, f"makel {makel.__version__}\n", "")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["nope"], "No such command 'nope': see 'makel --help'"),
            (["--nope"], "No such option: --nope: see 'makel --help'"),
            (["weights"], "Missing command: see 'makel weights --help'"),
            (["info"], "Missing argument 'MODEL': see 'makel info --help'"),
            (["fit", "data"], "Missing option '--out': see 'makel fit --help'"),
            (
                ["fit", "data", "--out", "m", "--blocks", "2;3"],
                "--blocks '2;3' cannot be read: give block numbers with commas, such as 2,3",
            ),
            (
                ["fit", "data", "--out", "m", "--size", "640x"],
                "--size '640x' cannot be read: give a number of pixels such as 384, or width x height such as 640x256",
            ),
            (
                ["fit", "data", "--out", "m", "--size", "640x16"],
                "--size 640x16 is too small to show anything: give at least 32 pixels a side",
            ),
        ],
    )
    def test_wrong_arguments_are_one_line_and_exit_code_2(self, makel_says, arguments, said):
        assert makel_says(*arguments) == (2, "", f"makel: {said}\n")

    @pytest.mark.parametrize("arguments", [["--tile", "3"], ["--epochs", "x"], ["--calibrate", "guess"]])
    def test_values_that_an_option_does_not_take(self, makel_says, arguments):
        code, out, err = makel_says("fit", "data", "--out", "m", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"makel: Invalid value for '{arguments[0]}': ")
        assert err.endswith(": see 'makel fit --help'\n")
        assert err.count("\n") == 1

    def test_python_dash_m_is_the_same(self, tmp_path):
        done = subprocess.run([*MAKEL, "info", tmp_path / "none"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (8, "")
        assert done.stderr.startswith("makel: ")
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("raised", "code", "said"),
        [
            (KeyboardInterrupt(), 130, "makel: interrupted\n"),
            (PermissionError(13, "Permission denied", "/x/y"), 70, "makel: /x/y: Permission denied\n"),
            (OSError("disk on fire"), 70, "makel: a file: disk on fire\n"),
            (DatasetError("two\nlines"), 4, "makel: two lines\n"),
        ],
    )
    def test_what_ends_a_command_is_one_line(self, makel_says, monkeypatch, model, raised, code, said):
        def ends(*_, **__):
            raise raised

        monkeypatch.setattr("makel.model.folder.open_folder", ends)
        assert makel_says("info", model) == (code, "", said)

    def test_a_bug_is_not_dressed_up_as_a_user_s_mistake(self, makel_says, monkeypatch, model):
        def broken(*_, **__):
            raise ZeroDivisionError

        monkeypatch.setattr("makel.model.folder.open_folder", broken)
        with pytest.raises(ZeroDivisionError):
            makel_says("info", model)

    @pytest.mark.skipif(os.name == "nt", reason="no SIGPIPE on Windows")
    def test_a_reader_that_leaves_early_ends_it_quietly(self, model, parts):
        many = [str(parts / "good.png")] * 400
        inspecting = subprocess.Popen(
            [*MAKEL, "inspect", model, *many, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert json.loads(inspecting.stdout.readline())["verdict"] == "pass"
        inspecting.stdout.close()
        assert inspecting.stderr.read() == ""
        inspecting.stderr.close()
        assert inspecting.wait() == 141


class TestMissingExtra:
    @pytest.mark.parametrize(
        ("arguments", "what"),
        [
            (["fit", "data", "--out", "m"], "makel fit"),
            (["weights", "list"], "makel weights"),
            (["weights", "check", "vgg19"], "makel weights"),
            (["weights", "add", "vgg19", "f.pth"], "makel weights"),
            (["demo"], "makel demo"),
        ],
    )
    def test_prints_the_exact_install_command(self, makel_says, monkeypatch, arguments, what):
        monkeypatch.setattr(makel.cli.extras, "find_spec", lambda package: None)
        said = f"makel: {what} needs the 'fit' extra, which is not installed: pip install 'makel[fit]'\n"
        assert makel_says(*arguments) == (2, "", said)


class TestInspect:
    def test_lines_for_people(self, makel_says, model, parts):
        code, out, err = makel_says("inspect", model, parts / "good.png", parts / "spot.png")
        assert (code, err) == (0, "")
        first, second = out.splitlines()
        assert first == f"pass    {parts / 'good.png'}  score 0.001961, threshold 0.3, p = 1"
        assert second.startswith(f"reject  {parts / 'spot.png'}  score 0.5, threshold 0.3, p = 0.25; ")
        assert "px at" in second

    def test_one_json_object_an_image(self, makel_says, model, parts):
        code, out, err = makel_says("inspect", model, parts, "--json")
        assert (code, err) == (0, "")
        rows = [json.loads(line) for line in out.splitlines()]
        keys = ["path", "verdict", "score", "threshold", "p_value", "regions", "zones", "model_id", "elapsed_ms"]
        assert [list(row) for row in rows] == [keys, keys]
        assert [(row["path"], row["verdict"]) for row in rows] == [
            (str(parts / "good.png"), "pass"),
            (str(parts / "spot.png"), "reject"),
        ]
        (region,) = rows[1]["regions"]
        assert list(region) == ["box_px", "area_px", "peak", "zone", "area_mm2"]
        assert rows[0]["model_id"] == open_folder(model).manifest.model_id

    def test_what_cannot_be_inspected_is_said_and_the_run_goes_on(self, makel_says, model, parts):
        (parts / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        code, out, err = makel_says("inspect", model, parts, parts / "absent.png", "--json", "--fail-on-reject")
        assert code == 3
        rows = [json.loads(line) for line in out.splitlines()]
        assert [row.get("verdict", "error") for row in rows] == ["error", "pass", "reject", "error"]
        assert list(rows[0]) == list(rows[3]) == ["path", "error"]
        assert "broken.png" in rows[0]["error"]
        assert "absent.png" in rows[3]["error"]
        assert err == "makel: 2 of 4 images could not be inspected\n"

    def test_errors_for_people_go_to_stderr(self, makel_says, model, parts):
        code, out, err = makel_says("inspect", model, parts / "good.png", parts / "absent.png")
        assert code == 3
        assert out.count("\n") == 1
        first, last = err.splitlines()
        assert first.startswith("makel: ")
        assert "absent.png" in first
        assert last == "makel: 1 of 2 images could not be inspected"

    def test_a_folder_without_images_is_one_that_cannot_be_inspected(self, makel_says, model, tmp_path):
        (tmp_path / "empty").mkdir()
        code, out, err = makel_says("inspect", model, tmp_path / "empty", "--json")
        assert code == 3
        assert json.loads(out)["path"] == str(tmp_path / "empty")
        assert err == "makel: 1 of 1 images could not be inspected\n"

    @pytest.mark.parametrize(("name", "code"), [("good.png", 0), ("spot.png", 1)])
    def test_fail_on_reject(self, makel_says, model, parts, name, code):
        assert makel_says("inspect", model, parts / name, "--fail-on-reject")[::2] == (code, "")

    def test_overlays_and_masks(self, makel_says, model, parts, tmp_path):
        code, out, err = makel_says("inspect", model, parts, "--out", tmp_path / "pictures")
        assert (code, out.count("\n"), err) == (0, 2, "")
        written = sorted(path.name for path in (tmp_path / "pictures").iterdir())
        assert written == ["good_mask.png", "good_overlay.png", "spot_mask.png", "spot_overlay.png"]
        mask = cv2.imread(str(tmp_path / "pictures" / "spot_mask.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (48, 80)
        assert mask[18, 30] == 255
        assert not cv2.imread(str(tmp_path / "pictures" / "good_mask.png"), cv2.IMREAD_UNCHANGED).any()

    def test_what_is_not_looked_at_is_named_and_no_pass(self, makel_says, model, parts):
        (parts / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
        (parts / "b.GIF").write_bytes(b"GIF89a")
        (parts / "c.gif").write_bytes(b"GIF89a")
        (parts / "d").write_bytes((parts / "spot.png").read_bytes())
        (parts / ".hidden.png").write_bytes((parts / "spot.png").read_bytes())
        for litter in ("._a.png", "Thumbs.db", ".DS_Store"):
            (parts / litter).write_bytes(b"\0\1")
        (parts / "spot.png").unlink()
        code, out, err = makel_says("inspect", model, parts)
        said = "makel: 5 files not looked at: 2 .gif, 1 hidden .png, 1 .heic, 1 without an ending (PNG)\n"
        assert (code, out.count("\n"), err) == (0, 1, said)
        code, out, err = makel_says("inspect", model, parts, "--fail-on-reject", "--json")
        assert (code, out.count("\n")) == (3, 1)
        assert err == said + "makel: not everything was inspected: --fail-on-reject ends with 3\n"

    def test_text_beside_images_is_named_and_may_lie_there(self, makel_says, model, parts):
        (parts / "notes.txt").write_text("Grüße\n", encoding="utf-8")
        (parts / "empty.tmp").touch()
        (parts / "spot.png").unlink()
        code, _, err = makel_says("inspect", model, parts, "--fail-on-reject")
        assert (code, err) == (0, "makel: 2 files not looked at: 1 .tmp, 1 .txt\n")

    def test_folders_in_a_folder_are_named_and_looked_into_where_asked(self, makel_says, model, parts):
        for folder, names in {"cam2": "ab", "cam2/day/deep": "c", ".thumbnails": "d", "empty": ""}.items():
            (parts / folder).mkdir(parents=True)
            for name in names:
                (parts / folder / f"{name}.png").write_bytes((parts / "spot.png").read_bytes())
        (parts / "spot.png").unlink()
        code, out, err = makel_says("inspect", model, parts, "--fail-on-reject")
        assert (code, out.count("\n")) == (3, 1)
        assert "makel: cam2/ holds 2 images not looked at: give that folder, too, or --recursive\n" in err
        assert "makel: cam2/day/deep/ holds 1 image not looked at" in err
        assert "makel: .thumbnails/ holds 1 image not looked at" in err
        code, out, err = makel_says("inspect", model, parts, "--recursive", "--fail-on-reject")
        assert (code, [line[:6] for line in out.splitlines()]) == (1, ["pass  ", "reject", "reject", "reject"])
        assert err == "makel: .thumbnails/ holds 1 image not looked at: give that folder, too\n"
        code, _, err = makel_says("inspect", model, parts, parts / "cam2", parts / "cam2/day/deep")
        assert (code, "cam2" in err) == (0, False)

    @pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
    def test_a_link_to_a_folder_is_named(self, makel_says, model, parts, tmp_path):
        (tmp_path / "other").mkdir()
        (parts / "spot.png").rename(tmp_path / "other" / "spot.png")
        (parts / "linked").symlink_to(tmp_path / "other")
        (parts / "loop").symlink_to(parts)
        code, out, err = makel_says("inspect", model, parts, "--recursive", "--fail-on-reject")
        assert (code, out.count("\n")) == (3, 1)
        assert "makel: linked/ holds 1 image not looked at" in err

    def test_names_that_disagree_with_the_files_are_said_once(self, makel_says, model, parts):
        (parts / "good.png").rename(parts / "good.bmp")
        code, out, err = makel_says("inspect", model, parts, parts / "spot.png")
        assert (code, out.count("\n")) == (0, 3)
        assert err == (
            "makel: 1 of 3 names disagree with what the files hold, which decides: 1 .bmp hold PNG (first: "
            f"{parts / 'good.bmp'})\n"
        )

    @pytest.mark.skipif(os.name == "nt", reason="names as long as on a camera's own Linux")
    @pytest.mark.parametrize("letter", ["a", "ü", "\U0001f34e"])
    def test_pictures_of_names_as_long_as_a_disk_takes(self, makel_says, model, parts, tmp_path, letter):
        names = [letter * (246 // len(letter.encode())) + f"{last}.png" for last in "12"]
        for name in names:
            shutil.copy(parts / "spot.png", parts / name)
        code, out, err = makel_says("inspect", model, parts, "--out", tmp_path / "pictures")
        assert (code, out.count("\n"), err) == (0, 4, "")
        written = sorted(path.name for path in (tmp_path / "pictures").iterdir())
        assert len(written) == 8
        assert sum(name.startswith(letter * 40) and name.endswith("_overlay.png") for name in written) == 2

    @pytest.mark.skipif(sys.platform != "linux", reason="a device that is always full is Linux's")
    def test_pictures_that_cannot_be_written_change_no_verdict_and_the_exit_code(
        self, makel_says, model, parts, tmp_path
    ):
        out = tmp_path / "p"
        (out / "good_overlay.png").mkdir(parents=True)
        (out / "spot_mask.png").symlink_to("/dev/full")
        code, said, err = makel_says("inspect", model, parts, "--out", out)
        assert (code, [line[:6] for line in said.splitlines()]) == (70, ["pass  ", "reject"])
        assert err.splitlines() == [
            f"makel: the pictures of {parts / 'good.png'} cannot be written to {out}/good_overlay.png: Is a directory",
            f"makel: the pictures of {parts / 'spot.png'} cannot be written to {out}/spot_overlay.png: "
            "No space left on device",
            "makel: the pictures of 2 of 2 images could not be written",
        ]
        assert sorted(path.name for path in out.iterdir()) == ["good_overlay.png"]  # no picture without its mask

    @pytest.mark.parametrize("where", ["", "found", "found/deeper", "../parts", "linked"])
    @pytest.mark.parametrize("given", ["folder", "file"])
    def test_pictures_do_not_go_among_the_images(self, makel_says, model, parts, where, given):
        if where == "linked" and os.name == "nt":
            pytest.skip("links need a privilege on Windows")
        if where == "linked":
            (parts / "linked").symlink_to(parts)
        inside_a_folder = where.startswith("found") and given == "file"
        code, out, err = makel_says(
            "inspect", model, parts if given == "folder" else parts / "good.png", "--out", parts / where
        )
        if inside_a_folder:
            assert code == 0
            return
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "its pictures would be taken for images: give a folder outside of it" in err

    @pytest.mark.parametrize("command", ["inspect", "evaluate"])
    @pytest.mark.parametrize("inside", [".", "found"])
    def test_nothing_else_goes_into_a_model(self, makel_says, model, parts, command, inside):
        code, out, err = makel_says(command, model, parts, "--out", model / inside)
        assert (code, out) == (2, "")
        assert "lies in the model folder" in err
        assert not (model / "found").exists()
        assert sorted(path.name for path in parts.iterdir() if not path.is_symlink()) == ["good.png", "spot.png"]

    def test_an_unknown_provider(self, makel_says, model, parts):
        code, out, err = makel_says("inspect", model, parts, "--provider", "abacus")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "abacus" in err

    def test_torch_stays_out(self, model, parts):
        code = (
            "import sys; from makel.cli import run\n"
            f"assert run(['inspect', {str(model)!r}, {str(parts / 'good.png')!r}]) == 0\n"
            "print(sorted({'torch', 'timm', 'torchvision', 'onnx'} & {*sys.modules}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


class TestModel:
    def test_verify(self, makel_says, model):
        code, out, err = makel_says("verify", model)
        assert (code, err) == (0, "")
        first, second = out.splitlines()
        model_id = open_folder(model).manifest.model_id
        assert first == f"{model} is intact: model {model_id}, 7 files"
        assert second.startswith("2 golden images replayed on cpu: scores differ by at most ")
        assert "(allowed 1e-05), maps by " in second

    def test_verify_json(self, makel_says, model):
        code, out, err = makel_says("verify", model, "--json")
        assert (code, err) == (0, "")
        said = json.loads(out)
        assert list(said) == [
            "model_id",
            "n_files",
            "n_golden",
            "worst_score_difference",
            "worst_map_difference",
            "score_tolerance",
            "map_tolerance",
        ]
        assert said["worst_score_difference"] <= said["score_tolerance"] == 1e-5

    def test_verify_names_the_changed_file(self, makel_says, tmp_path):
        folder = tiny_model.write(tmp_path / "changed")
        with (folder / "golden" / "001.npz").open("r+b") as file:
            file.write(b"X")
        code, out, err = makel_says("verify", folder)
        assert (code, out, err.count("\n")) == (8, "", 1)
        assert "001.npz" in err

    def test_verify_refuses_another_network(self, makel_says, tmp_path):
        folder = tiny_model.write(tmp_path / "drifted", model=tiny_model.onnx_bytes(gain=1.001))
        code, out, err = makel_says("verify", folder)
        assert (code, out, err.count("\n")) == (8, "", 1)
        assert "000.npz scores" in err

    def test_info(self, makel_says, model):
        code, out, err = makel_says("info", model)
        assert (code, err) == (0, "")
        manifest = open_folder(model).manifest
        assert out == (
            f"model      {manifest.model_id}\n"
            "method     skip_ae, preset fast\n"
            "backbone   tf_efficientnet_lite0, blocks 1,2 (Apache-2.0, SHA-256 0000000000000000...)\n"
            "images     rgb, seen at 16 x 16 px (width x height)\n"
            "colour     read in colour\n"
            "fitted on  tiny: 12 good images, 3 to calibrate\n"
            f"fitted at  2025-01-01T00:00:00+00:00 in 2 s, makel {makel.__version__}\n"
            "threshold  0.3 for images, 0.3 for pixels\n"
            f"promise    {manifest.calibration.explain()}\n"
        )

    def test_info_json_is_the_manifest(self, makel_says, model):
        code, out, err = makel_says("info", model, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out) == json.loads((model / "model.json").read_bytes())

    def test_info_of_no_model(self, makel_says, parts):
        code, out, err = makel_says("info", parts)
        assert (code, out, err.count("\n")) == (8, "", 1)
        assert str(parts) in err


class TestWeights:
    def test_list(self, makel_says):
        code, out, err = makel_says("weights", "list")
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == "efficientnet_lite0   apache-2.0     here (package)"
        assert "vgg19                bsd-3-clause   not here" in lines
        assert lines[-1] == "'makel weights check NAME' says how to get one that is not here."

    def test_list_json(self, makel_says):
        code, out, err = makel_says("weights", "list", "--json")
        assert (code, err) == (0, "")
        rows = {row["name"]: row for row in map(json.loads, out.splitlines())}
        assert list(rows["efficientnet_lite0"]) == ["name", "timm", "licence", "source", "sha256"]
        assert list(rows["resnext101"]) == ["name", "timm", "licence", "error"]
        assert rows["resnext101"]["timm"] == "resnext101_32x8d.tv_in1k"

    def test_check(self, makel_says):
        assert makel_says("weights", "check", "tf_efficientnet_lite0") == (
            0,
            "efficientnet_lite0 is right: 4,694,073 numbers match timm's tf_efficientnet_lite0.in1k; package, "
            "apache-2.0 (the LICENSE file of the Python package), "
            "SHA-256 579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db\n",
            "",
        )

    def test_check_of_what_is_not_here_says_the_way_out(self, makel_says):
        assert makel_says("weights", "check", "resnext50") == (
            6,
            "",
            "makel: no weights for backbone 'resnext50' on this machine: connect to huggingface.co; or on a machine "
            "that can, save model.safetensors of timm/resnext50_32x4d.tv_in1k and run "
            "'makel weights add resnext50 FILE' here\n",
        )

    def test_add(self, makel_says, tmp_path):
        import torch

        from makel.training.torchvision_import import import_timm

        torch.manual_seed(0)
        torch.save(import_timm().create_model("mobilenetv3_small_100").state_dict(), tmp_path / "w.pth")
        code, out, err = makel_says("weights", "add", "mobilenet_v3_small", tmp_path / "w.pth")
        assert (code, err) == (0, "")
        assert out.startswith("added mobilenet_v3_small: ")
        assert "mobilenet_v3_small   apache-2.0     here (added)" in makel_says("weights", "list")[1]

    def test_add_refuses_what_is_not_weights(self, makel_says, tmp_path):
        (tmp_path / "w.pth").write_bytes(b"nothing")
        code, out, err = makel_says("weights", "add", "vgg19", tmp_path / "w.pth")
        assert (code, out, err.count("\n")) == (6, "", 1)
        assert "w.pth cannot be read as weights" in err


class TestProgress:
    def test_nobody_watches_nothing_is_drawn(self, capsys):
        assert list(count([1, 2, 3], "inspecting", 3)) == [1, 2, 3]
        with Bars() as bars:
            bars("fitting", 1, 2)
        assert capsys.readouterr() == ("", "")

    def test_a_terminal_gets_a_bar_a_stage_on_stderr(self, monkeypatch, capsys):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        with Bars() as bars:
            bars("features", 8, 48)
            bars("training", 1, 40)
            print("a result")
        assert "features" in terminal.getvalue()
        assert "8/48" in terminal.getvalue()
        assert "training" in terminal.getvalue()
        assert capsys.readouterr().out == "a result\n"

    def test_quiet_draws_nothing_on_a_terminal(self, monkeypatch):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        assert list(count("ab", "inspecting", 2, quiet=True)) == ["a", "b"]
        assert terminal.getvalue() == ""


class TestFit:
    def test_the_root_of_a_disk_is_no_model(self, makel_says, parts):
        code, out, err = makel_says("fit", parts, "--out", "/", "--quiet")
        assert (code, out) == (8, "")
        assert err.endswith("is the root of a disk: give a folder for the model in it\n")

    def test_options_reach_fit(self, makel_says, monkeypatch, tmp_path):
        asked = {}

        def fit(data, out, **settings):
            asked.update(settings, data=data, out=out)
            settings["progress"]("training", 1, 2)
            return SimpleNamespace(lines=lambda: ["one", "two"], to_json=lambda: {"n_fit": 3}, notes=())

        monkeypatch.setattr("makel.training.fit.fit", fit)
        assert makel_says("fit", "data", "--out", tmp_path / "m") == (0, "one\ntwo\n", "")
        assert isinstance(asked.pop("progress"), Bars)
        assert asked == {
            "data": asked["data"],
            "out": tmp_path / "m",
            "method": "skip_ae",
            "preset": "fast",
            "backbone": None,
            "blocks": None,
            "size": None,
            "epochs": None,
            "augment": False,
            "tile": None,
            "overlap": "auto",
            "false_reject": 0.01,
            "calibrate": "holdout",
            "holdout": 0.2,
            "zones": None,
            "latency_budget": None,
            "seed": 0,
            "device": "auto",
            "resume": False,
            "group": None,
        }
        options = "--method dfr --preset paper --backbone vgg19 --blocks 1,3 --size 128 --epochs 2 --false-reject 0.05 "
        options += "--augment --tile 64 --overlap 8 --zones z.toml --latency-budget 20 "
        options += "--calibrate cross --holdout 0.3 --seed 7 --device cpu --resume --quiet --json"
        assert makel_says("fit", "data", "--out", "m", *options.split()) == (0, '{"n_fit": 3}\n', "")
        assert (asked["method"], asked["preset"], asked["backbone"], asked["blocks"]) == (
            "dfr",
            "paper",
            "vgg19",
            (1, 3),
        )
        assert (asked["size"], asked["epochs"], asked["false_reject"], asked["calibrate"]) == (128, 2, 0.05, "cross")
        assert (asked["augment"], asked["tile"], asked["overlap"]) == (True, 64, "8")
        assert (str(asked["zones"]), asked["latency_budget"]) == ("z.toml", 20)
        assert (asked["holdout"], asked["seed"], asked["device"], asked["resume"]) == (0.3, 7, "cpu", True)


class TestWhatWasTyped:
    """What people type that is nearly right."""

    @pytest.mark.parametrize(
        ("typed", "expected"), [(None, None), ("384", 384), ("640x256", (256, 640)), ("640X256", (256, 640))]
    )
    def test_a_size_is_a_number_or_width_and_height(self, typed, expected):
        assert parse_size(typed) == expected

    @pytest.mark.parametrize("typed", ["", "x", "1x2x3", "-64", "64.5", "640 256", "\u0663\u0662", "9" * 5000])
    def test_what_is_no_size_is_refused_in_one_line(self, typed):
        with pytest.raises(UsageError, match="cannot be read: give a number of pixels such as 384, or width x height"):
            parse_size(typed)

    def test_a_folder_of_folders_says_what_to_give(self, model, parts, makel_says):
        code, out, err = makel_says("inspect", model, parts.parent)
        assert (code, out) == (3, "")
        assert f"{parts.parent} is a folder: give an image file or, to `makel inspect`, a folder" in err

    def test_a_path_that_is_not_there_says_what_to_give(self, model, tmp_path, makel_says):
        code, _, err = makel_says("inspect", model, tmp_path / "nowhere")
        assert code == 3
        assert "nowhere cannot be read: No such file or directory: give an image file or a folder of them" in err

    @pytest.mark.parametrize(("typed", "expected"), [("1%", 0.01), ("0.5 %", 0.005), ("0.25", 0.25), ("1e-3", 0.001)])
    def test_a_share_may_be_a_percentage(self, typed, expected):
        assert share(typed) == pytest.approx(expected)

    def test_what_is_no_share_is_told_with_the_value(self, tmp_path, makel_says):
        code, _, err = makel_says("fit", tmp_path, "--out", tmp_path / "model", "--false-reject", "one")
        assert code == 2
        assert "'one' is no share: give a number between 0 and 1, such as 0.01, or 1%" in err
