"""README.md and docs/: what they show can be typed, what they list is what there is, and the pages build."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import fields
from enum import Enum
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
import typer.main

import guides
import tiny_model
from makel import Inspector, errors
from makel.bench.spec import Grid, Spec, read
from makel.calibration import Calibration, images_needed
from makel.cli import BROKEN_PIPE_EXIT_CODE, INTERRUPTED_EXIT_CODE, app
from makel.images import Preparation
from makel.model import manifest
from makel.training.backbones import BLOCKS, STAGES, architecture, dense_architecture
from makel.training.facts import FACTS, facts_of

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = guides.pages(REPOSITORY)
NAMES = [page.relative_to(REPOSITORY).as_posix() for page in PAGES]


def text_of(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def commands(group=None, name=""):
    """Every command by its name, "weights add"."""
    for word, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name}{word} ")
        else:
            yield f"{name}{word}", command


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_is_one_makel_takes(name):
    for words in guides.command_lines(text_of(name)):
        if words == ["--version"]:
            continue
        size = 1 if words[0] in COMMANDS else 2
        command = COMMANDS[" ".join(words[:size])]
        command.make_context(words[0], words[size:])  # refuses an unknown option, a wrong value, a missing argument


def test_command_lines_are_found_and_wrong_ones_refused():
    text = "```sh\npip install makel\nA=1 makel fit x \\\n  --out m --seed 1  # why\nmakel info m | head\n```\n"
    assert list(guides.command_lines(text)) == [["fit", "x", "--out", "m", "--seed", "1"], ["info", "m"]]
    assert sum(1 for name in NAMES for _ in guides.command_lines(text_of(name))) > 50
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["fit"].make_context("fit", ["x", "--out", "m", "--sead", "1"])


@pytest.mark.parametrize("name", [*NAMES, "SECURITY.md"])
def test_links_and_images_point_at_files_that_exist(name):
    prose = guides.prose(text_of(name))
    targets = re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", prose) + re.findall(r"^\[[^\]]+\]:\s*(\S+)", prose, re.MULTILINE)
    targets += re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", prose)
    inside = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in inside if not ((REPOSITORY / name).parent / target).exists()]
    assert missing == []


def test_the_table_of_exit_codes_is_that_of_errors():
    (rows,) = guides.tables(guides.section(text_of("docs/command_line.md"), "Exit codes"))
    documented = {(int(code), error.strip("`")) for code, error, _ in rows}
    others = {0, errors.REJECTED_EXIT_CODE, INTERRUPTED_EXIT_CODE, BROKEN_PIPE_EXIT_CODE}
    assert documented == {(code, error.__name__) for error, (code, _) in errors.CODES.items()} | {
        (code, "–") for code in others
    }


def default_of(option):
    """The default as the page has it; None where its own words say it."""
    if isinstance(getattr(option, "show_default", None), str):
        return option.show_default
    if option.required:
        return "needed"
    if option.is_flag:
        return "off"
    default = option.default
    return None if default is None else default.value if isinstance(default, Enum) else str(default)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_documented_options_are_those_of_the_command(name):
    text = guides.section(text_of("docs/command_line.md"), f"`makel {name}`")
    options = {option.opts[0]: option for option in COMMANDS[name].params if option.param_type_name == "option"}
    rows = {row[0].strip("`"): row for table in guides.tables(text) for row in table if row[0].startswith("`--")}
    assert rows.keys() == options.keys()
    for option, (_, _, documented) in rows.items():
        expected = default_of(options[option])
        assert expected is None or documented.strip("`") == expected, option
    for argument in (param for param in COMMANDS[name].params if param.param_type_name == "argument"):
        assert argument.metavar in text


def test_every_command_is_in_the_table_of_commands():
    first = text_of("docs/command_line.md").partition("\n## ")[0]
    listed = {row[0].split("`")[1].removeprefix("makel ") for row in guides.tables(first)[0]}
    assert listed == {name.split()[0] for name in COMMANDS}


def keys_of(path, owner):
    """The keys of the dictionary that a class's `to_json`, or a function, has in its source."""
    tree = ast.parse(text_of(path))
    found = next(
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == owner
    )
    if isinstance(found, ast.ClassDef):
        found = next(node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "to_json")
    table = next(node for node in ast.walk(found) if isinstance(node, ast.Dict) and node.keys)
    return {key.value for key in table.keys}


@pytest.mark.parametrize(
    ("command", "path", "owner", "more"),
    [
        ("fit", "src/makel/training/summary.py", "FitSummary", set()),
        ("evaluate", "src/makel/evaluation/protocol.py", "Evaluation", set()),
        ("evaluate", "src/makel/evaluation/protocol.py", "KindResult", set()),
        ("inspect", "src/makel/types.py", "Verdict", {"path", "error"}),
        ("inspect", "src/makel/types.py", "Region", set()),
        ("recalibrate", "src/makel/evaluation/recalibration.py", "Recalibrated", set()),
        ("verify", "src/makel/cli/model.py", "verify", set()),
    ],
)
def test_every_key_of_json_is_documented(command, path, owner, more):
    text = guides.section(text_of("docs/command_line.md"), f"`makel {command}`")
    assert keys_of(path, owner) | more <= set(re.findall(r"`(\w+)`", text))


def test_the_keys_of_the_evaluation_are_no_others():
    text = guides.section(text_of("docs/command_line.md"), "`makel evaluate`")
    keys = {key for row in guides.tables(text)[1] for key in re.findall(r"`(\w+)`", row[0])}
    assert keys == keys_of("src/makel/evaluation/protocol.py", "Evaluation")


def test_the_table_of_backbones_is_that_of_facts():
    rows, dense = guides.tables(text_of("docs/backbones.md"))
    normalisations = {0.5: "centred", 0.485: "ImageNet"}
    assert rows == [
        [
            f"`{facts.name}`",
            f"`{facts.tag}`",
            facts.licence,
            normalisations[facts.normalisation[0][0]],
            ", ".join(map(str, architecture(facts, BLOCKS)[1])),
            f"the package in `makel[{facts.extra}]`" if facts.package else f"`{facts.file}`, or the hub",
        ]
        for facts in FACTS
    ]
    _, channels, strides = dense_architecture(facts_of("vgg19_dfr"), STAGES)
    assert dense == [list(map(str, row)) for row in zip(STAGES, strides, channels, strict=True)]


def test_the_documented_normalisations_are_those_of_facts():
    text = text_of("docs/backbones.md")
    for facts in FACTS:
        for values in facts.normalisation:
            assert (", ".join(map(str, values)) if len(set(values)) > 1 else str(values[0])) in text


def test_the_keys_of_a_manifest_are_documented():
    text = guides.section(text_of("docs/model_folder.md"), "model.json")
    (rows,) = guides.tables(text)
    assert {row[0].strip("`") for row in rows} == set(manifest.Manifest.model_fields)
    named = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows}
    for key, parts in {
        "method": manifest.Method.model_fields,
        "backbone": manifest.Backbone.model_fields,
        "provenance": manifest.Provenance.model_fields,
        "fit": manifest.Fit.model_fields,
        "parity": manifest.Parity.model_fields,
        "recalibration": manifest.Recalibration.model_fields,
        "latency": {**manifest.Latency.model_fields, **manifest.Tried.model_fields},
        "calibration": [item.name for item in fields(Calibration)],
        "preprocessing": [item.name for item in fields(Preparation)],
    }.items():
        assert set(parts) <= named[key], key


def test_the_keys_of_a_benchmark_are_documented(tmp_path):
    text = text_of("docs/bench.md")
    top, grid = guides.tables(guides.section(text, "The file"))
    assert [row[0].strip("`") for row in top] == list(Spec.model_fields)
    assert [row[0].strip("`") for row in grid] == list(Grid.model_fields)
    (example,) = guides.blocks(text, "toml")
    (tmp_path / "spec.toml").write_text(example, encoding="utf-8")
    assert [len(each.methods) for each in read(tmp_path / "spec.toml").grid] == [2, 1]


def test_the_table_of_promises_is_what_calibration_says():
    (rows,) = guides.tables(guides.section(text_of("docs/first_model.md"), "1. Collect good pictures"))
    for good, held_out, promise in rows:
        assert round(0.2 * int(good)) == int(held_out)
        assert promise == f"{100 / (int(held_out) + 1):.1f} %"
    assert images_needed(0.01) == int(rows[-1][1])


def test_offline_installs_the_torch_that_dev_py_pins():
    pins = re.search(r'^TORCH, TORCHVISION = "([\d.]+)", "([\d.]+)"', text_of("dev.py"), re.MULTILINE)
    text = text_of("docs/offline.md")
    assert set(re.findall(r"torch==([\d.]+)", text)) == {pins[1]}
    assert set(re.findall(r"torchvision==([\d.]+)", text)) == {pins[2]}


@pytest.mark.parametrize("shape", [(40, 23), (7, 50), (9, 11), (16, 16), (64, 64)])
def test_the_program_for_other_languages_says_what_makel_says(tmp_path, shape):
    (code,) = guides.blocks(text_of("docs/model_folder.md"), "python")
    (tmp_path / "judge.py").write_text(code, encoding="utf-8")
    pixels = np.random.default_rng(5).integers(0, 256, (*shape, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "part.png"), pixels)
    model = tiny_model.write(tmp_path / "model")
    verdict = Inspector.load(model).inspect(tmp_path / "part.png")
    threshold = Inspector.load(model).calibration.pixel_threshold
    done = subprocess.run(
        [sys.executable, "judge.py", "model", "part.png"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "verdict": verdict.verdict,
        "score": pytest.approx(verdict.score, abs=1e-7),
        "p_value": verdict.p_value,
        "pixels_above": int((verdict.anomaly_map > threshold).sum()),
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_pages_build(site):
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {page.relative_to(REPOSITORY / "docs").with_suffix(".html").as_posix() for page in PAGES[1:]} <= built


def test_the_built_pages_load_nothing_from_outside(site):
    for path in (*site.rglob("*.html"), *site.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"'> ]+", text)
        loaded += re.findall(r"<link\b(?=[^>]*stylesheet|[^>]*icon)[^>]*href=[\"']?(?:https?:)?//[^\"'> ]+", text)
        loaded += re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^\"') ]+", text)
        assert loaded == [], path
