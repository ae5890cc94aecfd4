"""benchmarks/specs/paper.toml runs as it is for whoever has its images and weights.

The full ResNeXt101 and VGG19 take too long here. Every cell is built in full size without numbers in it; what runs is
the same file in small, on the smaller backbones of its Table 5. Their weights are random, so no figure means anything:
the files and the category are called random, and the paper has no values beside such a category.
"""

import csv
import json
import tomllib

import pytest
import torch
from safetensors.torch import save_file

from makel.bench import paper
from makel.bench.cells import expand
from makel.bench.measure import _config
from makel.bench.run import run
from makel.bench.spec import read
from makel.datasets import synthetic
from makel.methods import load as load_method
from makel.training.backbones import Backbone, architecture, dense_architecture
from makel.training.facts import VGG19_DFR, facts_of
from makel.training.torchvision_import import import_timm
from makel.training.weights import add

CATEGORIES = [paper.same_name(name) for number in ("2", "3") for name in paper.table(number)]
RANDOM = "random_weights"
SMALL = {
    "anogan": {"size": 32, "width": 8, "epochs": 1, "search_steps": 1},
    "ganomaly": {"size": 32, "width": 8, "epochs": 1},
    "skip_ganomaly": {"size": 32, "width": 8, "epochs": 1},
    "dfr": {"size": 64, "epochs": 1},
    "skip_ae": {"size": 64, "epochs": 1, "grid": 16, "widths": [8, 8], "skips": [-1]},
}
RUN_ON = {"mobilenet_v3_small", "mobilenet_v3_large"}


@pytest.fixture
def paper_toml(repository):
    return repository / "benchmarks" / "specs" / "paper.toml"


@pytest.fixture
def variants(paper_toml):
    return list(dict.fromkeys(cell.variant for cell in expand(read(paper_toml, ["somewhere"]), CATEGORIES)))


def test_all_of_the_papers_cells_are_there(paper_toml, variants):
    cells = expand(read(paper_toml, ["somewhere"]), CATEGORIES)
    assert len(CATEGORIES) == 17
    assert len(variants) == 5 + 4 + 5
    assert len(cells) == 17 * 14 * 3
    of_skip_ae = {(each.backbone, each.blocks) for each in variants if each.method == "skip_ae"}
    assert {name for name, blocks in of_skip_ae if blocks == (1, 2, 3)} == set(paper.BACKBONES)
    blocks_of = {",".join(map(str, blocks)) for name, blocks in of_skip_ae if name == "resnext101"}
    assert blocks_of == set(paper.BLOCKS)


def test_every_variant_of_the_paper_fits_together_in_full_size(variants):
    for variant in variants:
        method = load_method(variant.method)
        config = method.config_class(**_config(variant.config))
        backbone = without_numbers(config.backbone, config.blocks) if config.backbone else None
        with torch.device("meta"):
            detector = method(config, backbone)
            features = detector.features(torch.empty(2, 3, *config.size))
            assert {len(level) for level in features} == {2}
            if variant.method == "skip_ae":
                assert detector.residual(features).shape == (2, sum(backbone.channels), 64, 64)
                assert detector.scores(features).anomaly_map.shape == (2, 1, *config.size)
            if variant.method == "dfr":
                assert features[0].shape == (2, 3456, 64, 64)
                detector.build(398)
                assert detector.scores(features).anomaly_map.shape == (2, 1, *config.size)


def without_numbers(name, blocks):
    facts = facts_of(name)
    network, channels, strides = (dense_architecture if name == VGG19_DFR else architecture)(facts, blocks)
    with torch.device("meta"):
        return Backbone(
            network,
            name=name,
            blocks=blocks,
            channels=channels,
            strides=strides,
            normalisation=facts.normalisation,
            licence=facts.licence,
            source="file",
            weights_sha256="",
        )


def in_small(text):
    """The file's own grids, one a method, with small settings, one seed, and backbones that run in seconds."""
    raw = tomllib.loads(text)
    lines = ['data = ["data"]', 'device = "cpu"', "threads = 1"]
    for grid in raw["grid"]:
        for method in grid["methods"]:
            listed = [name for name in grid.get("backbones", []) if name in RUN_ON] or ["mobilenet_v3_small"]
            settings = ", ".join(f"{key} = {json.dumps(value)}" for key, value in SMALL[method].items())
            lines += ["", "[[grid]]", f"methods = {json.dumps([method])}", f"preset = {json.dumps(grid['preset'])}"]
            lines += [f"backbones = {json.dumps(listed)}", f"blocks = {json.dumps(grid.get('blocks', []))}"]
            lines += [f"settings = {{ {settings} }}"]
    return "\n".join(lines)


def test_the_paper_runs_in_small(paper_toml, tmp_path):
    timm = import_timm()
    for name in sorted(RUN_ON):
        torch.manual_seed(0)
        file = tmp_path / f"random-{name}.safetensors"
        save_file(timm.create_model(facts_of(name).architecture).state_dict(), file)
        add(name, file)
    synthetic.write(tmp_path / "data" / RANDOM, n_fit=5, n_good=1, n_defect=1, size_px=64)
    (tmp_path / "spec.toml").write_text(in_small(paper_toml.read_text(encoding="utf-8")), encoding="utf-8")
    summary = run(tmp_path / "spec.toml", tmp_path / "out", workers=1)
    assert [record.result["error"] for record in summary.failed] == []
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["category"] for row in rows} == {RANDOM}
    assert [row["method"] for row in rows] == [*paper.METHODS, *["skip_ae"] * 6]
    assert {row["preset"] for row in rows} == {"paper"}
    tables = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    for number in ("Table 2", "Table 5", "Table 6"):
        assert number in tables
    assert RANDOM in tables
