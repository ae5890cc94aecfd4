"""Names from outside on a terminal: whoever prints makes them harmless, and nothing prints past that."""

import ast
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny_model
from makel.cli.terminal import put
from makel.escapes import cell, printable

SOURCE = Path(__file__).resolve().parent.parent / "src" / "makel"
ODD = "\x1b[2Jx\x1b]0;t\x07\n\u202e\x9b.png"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("part 7, größer, 部品　1, 😀.png", "part 7, größer, 部品　1, 😀.png"),
        ("a\u00a0b", "a\u00a0b"),  # a space is no danger, whichever it is
        ("\x1b[2J", r"\x1b[2J"),
        ("a\r\n\tb\0", r"a\r\n\tb\x00"),
        ("\x85\u2028\u2029", r"\x85\u2028\u2029"),
        ("\u202e\u200b\u2066\ufeff", r"\u202e\u200b\u2066\ufeff"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_becomes_an_escape(text, shown):
    assert printable(text) == shown


def test_a_cell_is_text_or_what_it_was():
    assert [cell(value) for value in (-1, -0.5, None, "", "=1", "a;=1", "a;b")] == [
        *(-1, -0.5, None, "", "'=1", "a;'=1", "a;b")
    ]


def test_a_line_is_one_line(capsys):
    put("one\ntwo", ODD)
    put(ODD, error=True)
    said = capsys.readouterr()
    assert said.out.count("\n") == 2
    assert (said.out + said.err).replace("\n", "").isprintable()


def test_nothing_of_the_command_line_prints_past_it():
    for path in (SOURCE / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            assert named not in ("print", "echo", "secho"), f"{path.name}:{node.lineno}: use makel.cli.terminal.put"


def test_no_table_is_written_past_it():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "csv.writer(" in text or "csv.DictWriter(" in text:
            assert "cell(value)" in text, f"{path}: values of CSV go through makel.escapes.cell"


def odd_images(folder):
    folder.mkdir()
    part = cv2.imencode(".png", np.full((16, 16, 3), 128, np.uint8))[1].tobytes()
    (folder / ODD).write_bytes(part)
    (folder / f"cut{ODD}").write_bytes(part[:60])
    return folder


def test_commands_print_names_of_files_harmlessly(tmp_path, makel_says):
    folder = odd_images(tmp_path / ("good" + ODD.removesuffix(".png")))
    model = tiny_model.write(tmp_path / "model")
    for arguments in (
        ("inspect", model, folder),
        ("inspect", model, folder / ODD, folder / f"no{ODD}"),
        ("inspect", tmp_path / ODD, folder),
        ("evaluate", model, folder),
        ("fit", folder, "--out", tmp_path / "out"),
        ("recalibrate", model, folder, "--out", tmp_path / f"again{ODD}"),
        ("info", tmp_path / ODD),
        ("verify", tmp_path / ODD),
        ("bench", tmp_path / ODD),
        ("history", "export", tmp_path, tmp_path / ODD),
        ("serve", f"{ODD}={model}", "--data", tmp_path / "station"),
        ("watch", model, tmp_path / ODD / ODD, "--data", tmp_path / "station", "--trigger"),
        (ODD, ODD),
        ("inspect", f"--{ODD}"),
    ):
        _, out, err = makel_says(*arguments)
        assert (out + err).replace("\n", "").isprintable(), arguments
        assert "\x1b" not in out + err


def test_what_is_logged_is_harmless_too(makel_says, capsys):
    makel_says("--version")
    log = logging.getLogger("makel.station.patrol")
    log.warning("%s: %s", ODD, "cannot be moved")
    try:
        raise ValueError(ODD)
    except ValueError:
        log.exception("looking at %s failed", ODD)
    said = capsys.readouterr().err
    assert said.splitlines()[0].endswith("cannot be moved")
    assert said.splitlines()[2] == "Traceback (most recent call last):"
    assert said.replace("\n", "").isprintable()
