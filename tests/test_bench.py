"""The grid, its cells and the tables: what can be told without a fit."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from makel.bench import paper
from makel.bench.cells import Cell, Variant, datasets, digest, expand, in_running_order
from makel.bench.figures import bars, pictures
from makel.bench.page import results
from makel.bench.spec import read
from makel.bench.store import Store
from makel.bench.tables import GAP, Record, all_tables, columns
from makel.datasets import load, synthetic
from makel.errors import UsageError

SPECS = Path(__file__).resolve().parent.parent / "benchmarks" / "specs"


def spec_of(tmp_path, text):
    path = tmp_path / "spec.toml"
    path.write_text('data = ["images"]\n' + text, encoding="utf-8")
    return read(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[grid]]\nmethods = ['dfr']\nbackbone = ['x']", "'backbone' of grid 1 is not .* mean 'backbones'"),
        ("[[grid]]\nmethods=['pca']\n[[grid]]\nmethods=['dfr']\nsede=[1]", "'sede' of grid 2 is not .* mean 'seeds'"),
        ("thread = 2\n[[grid]]\nmethods = ['dfr']", "key 'thread' is not known: did you mean 'threads'"),
        ("[[grid]]\nseeds = [1]", r"grid\.0\.methods: field required"),
        ("[[grid]]\nmethods = ['dfr']\nseeds = ['one']", r"grid\.0\.seeds\.0: .*got 'one'"),
        ("threads = 0\n[[grid]]\nmethods = ['dfr']", "threads: .*greater than or equal to 1, but got 0"),
        ("[[grid]\n", "is not TOML"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_says_where(tmp_path, text, said):
    with pytest.raises(UsageError, match=said) as error:
        spec_of(tmp_path, text)
    assert "spec.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_are_relative_to_the_file_and_data_replaces_them(tmp_path, monkeypatch):
    spec = spec_of(tmp_path, "[[grid]]\nmethods = ['dfr']")
    assert spec.data == (str(tmp_path / "images"),)
    monkeypatch.chdir(tmp_path)
    assert read(tmp_path / "spec.toml", ["here", "synthetic:8"]).data == (str(tmp_path / "here"), "synthetic:8")
    (tmp_path / "spec.toml").write_text("[[grid]]\nmethods = ['dfr']", encoding="utf-8")
    with pytest.raises(UsageError, match="names no data"):
        read(tmp_path / "spec.toml")


def test_cells_of_several_grids_that_are_the_same_count_once(tmp_path):
    spec = spec_of(
        tmp_path,
        """
        [[grid]]
        methods = ["skip_ae"]
        seeds = [0, 1]
        [[grid]]
        methods = ["skip_ae"]
        backbones = ["tf_efficientnet_lite0", "efficientnet_lite0"]
        blocks = [[2, 3], [3, 2], [1, 2, 3]]
        categories = ["a"]
        settings = { updates = 800 }
        """,
    )
    cells = expand(spec, ["a", "b"])
    assert [(cell.category, cell.variant.blocks, cell.seed) for cell in cells] == [
        *(("a", (2, 3), seed) for seed in (0, 1)),
        *(("b", (2, 3), seed) for seed in (0, 1)),
        ("a", (1, 2, 3), 0),
    ]
    assert {cell.variant.backbone for cell in cells} == {"efficientnet_lite0"}
    assert len({id(cell.variant) for cell in cells}) == 2


def test_methods_on_raw_pixels_are_one_cell_whatever_backbones_are_listed(tmp_path):
    text = (
        "[[grid]]\nmethods=['ganomaly','pca']\nbackbones=['efficientnet_lite0','efficientnet_lite1']\nblocks=[[1],[2]]"
    )
    cells = expand(spec_of(tmp_path, text), ["a"])
    assert [cell.variant.method for cell in cells] == ["ganomaly", *["pca"] * 4]
    assert cells[0].variant.backbone == ""
    assert cells[0].variant.blocks == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("methods = ['skipae']", "method 'skipae' is not known"),
        ("methods = ['dfr']\npreset = 'slow'", "preset 'slow' is not known"),
        (
            "methods = ['dfr']\ncategories = ['toothbursh']",
            "'toothbursh' is not in the data: did you mean 'toothbrush'",
        ),
        ("methods = ['dfr']\nsettings = { epoch = 3 }", "setting 'epoch' is not known: did you mean 'epochs'"),
        ("methods = ['dfr']\nsettings = { blocks = [1] }", "'blocks' is no key of settings"),
        ("methods = ['dfr']\nbackbones = ['resnet999']", "backbone 'resnet999' is not known"),
    ],
)
def test_a_grid_that_names_what_is_not_there_is_refused(tmp_path, text, said):
    with pytest.raises(UsageError, match=said):
        expand(spec_of(tmp_path, f"[[grid]]\n{text}"), ["toothbrush"])


def test_cells_run_category_by_category_and_seed_by_seed(tmp_path):
    cells = expand(spec_of(tmp_path, "[[grid]]\nmethods = ['dfr', 'pca']\nseeds = [1, 0]"), ["b", "a"])
    order = [(cell.category, cell.seed, cell.variant.method) for cell in in_running_order(cells, ["b", "a"])]
    assert order == [(c, s, m) for c in ("b", "a") for s in (0, 1) for m in ("dfr", "pca")]


def test_a_result_is_named_by_everything_it_depends_on(tmp_path):
    text = "[[grid]]\nmethods = ['dfr']\nseeds = [0, 1]\nblocks = [[1], [2]]"
    cells = expand(spec_of(tmp_path, text), ["a", "b"])
    keys = [cell.key(data) for cell in cells for data in ("one", "other")]
    assert len(set(keys)) == len(keys) == 16
    assert expand(spec_of(tmp_path, text), ["a", "b"])[3].key("one") == cells[3].key("one")


def test_the_digest_of_a_dataset_holds_images_labels_and_masks(tmp_path):
    root = tmp_path / "line"
    synthetic.write(root, n_fit=2, n_good=1, n_defect=2, size_px=64)
    seen = {digest(load(root))}
    mask = next((root / "ground_truth").rglob("*.png"))
    mask.write_bytes(mask.read_bytes() + b"\0")
    seen.add(digest(load(root)))
    kind = next(path for path in (root / "test").iterdir() if path.name != "good")
    kind.rename(kind.with_name("other"))
    (root / "ground_truth" / kind.name).rename(root / "ground_truth" / "other")
    seen.add(digest(load(root)))
    image = next((root / "train").rglob("*.png"))
    image.unlink()
    seen.add(digest(load(root)))
    assert len(seen) == 4
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    assert digest(load(moved)) in seen


def test_made_up_lines_are_drawn_once(tmp_path):
    spec = spec_of(tmp_path, "[[grid]]\nmethods = ['dfr']").model_copy(update={"data": ("synthetic:weave:4",)})
    (found,) = datasets(spec, tmp_path / "data").values()
    assert (found.name, len(found.good), len(found.test)) == ("weave-4", 4, 4)
    drawn = found.good[0].image_path.stat().st_mtime_ns
    assert datasets(spec, tmp_path / "data")["weave-4"].good[0].image_path.stat().st_mtime_ns == drawn
    for wrong in ("synthetic:", "synthetic:1", "synthetic:a:b:4", "synthetic:many"):
        with pytest.raises(UsageError, match="write synthetic:N"):
            datasets(spec.model_copy(update={"data": (wrong,)}), tmp_path / "data")
    with pytest.raises(UsageError, match="both called 'weave-4'"):
        datasets(spec.model_copy(update={"data": ("synthetic:weave:4",) * 2}), tmp_path / "data")


@pytest.mark.parametrize("number", ["2", "3", "5", "6"])
def test_the_papers_averages_are_those_of_its_rows(number):
    rows = paper.table(number)
    assert len(rows) == {"2": 15, "3": 2, "5": 17, "6": 17}[number]
    for column, printed in paper.average(number).items():
        assert printed == pytest.approx(mean(row[column] for row in rows.values()), abs=0.0101)  # it rounds as it likes


def test_the_papers_tables_agree_where_they_show_the_same_thing():
    blocks, backbones, methods = paper.table("6"), paper.table("5"), paper.table("2") | paper.table("3")
    for name, row in methods.items():
        assert row["skip_ae"] == backbones[name]["resnext101"] == blocks[name]["1,2,3"]


def variant(method="skip_ae", preset="fast", backbone="efficientnet_lite0", blocks=(1, 2, 3)):
    config = json.dumps({"backbone": backbone, "blocks": blocks, "preset": preset})
    return Variant(method, preset, backbone, tuple(blocks), 256, "{}", config)


def record(category, pixel, seed=0, image=None, of=None):
    metrics = {"pixel_auroc": pixel, "image_auroc": image, "aupro_30": None}
    return Record(Cell(category, of or variant(), seed), {"status": "done", "metrics": metrics, "error": None})


def place(tables, number, row, column, index=0):
    table = [table for table in tables if table.number == number][index]
    entry = dict(table.rows)[row][table.columns.index(column)]
    return entry.ours, entry.printed, entry.difference


def test_ours_stand_beside_the_papers_with_mean_spread_and_difference():
    ganomaly = variant("ganomaly", backbone="", blocks=())
    records = [
        *(record("toothbrush", pixel, seed) for seed, pixel in enumerate((0.96, 0.98, 1.0))),
        record("metal_nut", 0.9),
        record("toothbrush", 0.75, of=ganomaly),
        record("magnetic_tile", 0.8, image=0.6),
    ]
    tables = all_tables(records, ["toothbrush", "metal_nut", "magnetic_tile"], "pixel_auroc")
    assert [table.number for table in tables] == ["2"]
    assert place(tables, "2", "Toothbrush", "Proposed Method") == ("0.980 ± 0.020", "0.99", "−0.010")
    assert place(tables, "2", "Metal nut", "Proposed Method") == ("0.900", "0.98", "−0.080")
    assert place(tables, "2", "Toothbrush", "GANomaly") == ("0.750", "0.85†", "−0.100")
    assert place(tables, "2", "Bottle", "Proposed Method") == (GAP, "0.98", GAP)
    assert place(tables, "2", "Toothbrush", "DFR") == (GAP, "0.97", GAP)
    assert place(tables, "2", "magnetic_tile", "Proposed Method") == ("0.800", GAP, GAP)
    assert place(tables, "2", "Average", "Proposed Method") == (GAP, "0.97", GAP)  # two of fifteen are no average
    images = all_tables(records, ["toothbrush", "metal_nut", "magnetic_tile"], "image_auroc")
    assert place(images, "2", "magnetic_tile", "Proposed Method") == ("0.600", GAP, GAP)
    assert images[0].columns == ("GANomaly", "Proposed Method")


def test_an_average_is_over_what_every_column_has():
    dfr = variant("dfr", blocks=(2, 3, 4))
    records = [
        record("toothbrush", 0.9),
        record("cable", 0.7),
        record("bottle", 0.1),
        *(record("toothbrush", pixel, seed, of=dfr) for seed, pixel in enumerate((0.5, 0.6))),
        *(record("cable", pixel, seed, of=dfr) for seed, pixel in enumerate((0.7, 0.8))),
    ]
    tables = all_tables(records, ["toothbrush", "cable", "bottle"], "pixel_auroc")
    row = "Average of Cable and Toothbrush"
    assert place(tables, "2", row, "Proposed Method") == ("0.800", "0.97", "−0.170")
    assert place(tables, "2", row, "DFR") == ("0.650 ± 0.071", "0.92", "−0.270")  # by seed 0.60 and 0.70


def test_the_whole_of_the_papers_categories_has_the_papers_average():
    names = [paper.same_name(name) for name in paper.table("2")]
    tables = all_tables([record(name, 0.95) for name in names], names, "pixel_auroc")
    assert place(tables, "2", "Average", "Proposed Method") == ("0.950", "0.97", "−0.020")
    assert [name for name, _ in tables[0].rows if name.startswith("Average")] == ["Average"]


def test_production_lines_have_a_table_of_their_own():
    tables = all_tables([record("glass_pl", 0.97)], ["glass_pl"], "pixel_auroc")
    assert [table.number for table in tables] == ["3"]
    assert place(tables, "3", "Glass (PL)", "Proposed Method") == ("0.970", "0.99", "−0.020")


def test_backbones_and_blocks_are_compared_with_all_else_equal():
    others = [variant(blocks=(3,)), variant(backbone="efficientnet_lite2"), variant(backbone="resnext101")]
    stranger = variant(backbone="resnext50", blocks=(1,))  # differs in both
    records = [record("tile", 0.9), *(record("tile", 0.8, of=each) for each in [*others, stranger])]
    tables = all_tables(records, ["tile"], "pixel_auroc")
    assert [table.number for table in tables] == ["2", "5", "6"]
    assert tables[1].columns == (*paper.BACKBONES.values(), "efficientnet_lite0", "efficientnet_lite2")
    assert place(tables, "5", "Tile", "ResNeXt101") == ("0.800", "0.97", "−0.170")
    assert place(tables, "5", "Tile", "efficientnet_lite2") == ("0.800", GAP, GAP)
    assert place(tables, "5", "Tile", "ResNeXt50") == (GAP, "0.97", GAP)
    assert place(tables, "6", "Tile", "block 3") == ("0.800", "0.95", "−0.150")
    assert place(tables, "6", "Tile", "block 1,2,3") == ("0.900", "0.97", "−0.070")
    assert any("ours those of efficientnet_lite0" in note for note in tables[2].notes)
    five, six = bars(tables)
    assert five.name == "figure5a-proposed_method"
    assert "0.900" in six.svg
    assert "paper 0.95" in six.svg
    assert six.to_file().startswith("<svg ")


def test_another_method_has_its_tables_without_values_of_the_paper():
    dfr = variant("dfr", blocks=(2, 3, 4))
    records = [
        record("tile", 0.9, of=dfr),
        record("tile", 0.7, of=replace(dfr, blocks=(1,), config=variant(blocks=(1,)).config)),
    ]
    table = next(table for table in all_tables(records, ["tile"], "pixel_auroc") if table.number == "6")
    assert table.columns == ("block 1", "block 2,3,4")
    assert [name for name, _ in table.rows] == ["tile"]
    assert not table.compared


def test_two_presets_of_a_method_are_two_columns_and_the_first_named_stands_for_each():
    records = [
        record("tile", 0.9),
        record("tile", 0.8, of=variant(preset="paper")),
        record("tile", 0.7, of=variant(blocks=(1,))),
    ]
    assert columns(each.cell for each in records) == [records[0].cell.variant, records[1].cell.variant]
    table = all_tables(records, ["tile"], "pixel_auroc")[0]
    assert table.columns[-2:] == ("Proposed Method (fast)", "Proposed Method (paper)")


def test_a_failed_cell_is_a_gap_and_says_why():
    failed = Record(
        Cell("tile", variant(), 0),
        {"status": "failed", "error": {"type": "TrainingError", "message": "a\nb"}, "makel": "1", "commit": ""},
    )
    assert place(all_tables([failed], ["tile"], "pixel_auroc"), "2", "Tile", "Proposed Method")[0] == GAP
    assert results([failed]).splitlines()[1].endswith(",TrainingError: a b")
    assert pictures([failed], ["tile"]) == []


def test_shared_features_are_kept_within_their_limit(tmp_path):
    store = Store(tmp_path)
    for number in range(4):
        place_ = store.features / str(number)
        place_.mkdir(parents=True)
        (place_ / "0.npy").write_bytes(bytes(1000))
        (place_ / "index.json").write_text("{}", encoding="utf-8")
        os.utime(place_ / "index.json", (number % 3, number % 3))  # 0 and 3 are the oldest
    store.trim_features(2500)
    assert sorted(path.name for path in store.features.iterdir()) == ["1", "2"]
    store.trim_features(2500)
    assert len(list(store.features.iterdir())) == 2
    store.drop_features()
    assert not store.features.exists()


def test_a_folder_takes_one_benchmark_at_a_time_and_is_tidied(tmp_path):
    store = Store(tmp_path)
    (store.work / "left over").mkdir(parents=True)
    (store.features / ".half").mkdir(parents=True)
    (store.features / "whole").mkdir()
    with store.alone():
        assert [path.name for path in store.work.iterdir()] == []
        assert [path.name for path in store.features.iterdir()] == ["whole"]
        with pytest.raises(UsageError, match="another benchmark writes into"), Store(tmp_path).alone():
            pass
    with store.alone():
        assert store.load("cells", "none") is None


def test_a_damaged_result_is_named(tmp_path):
    store = Store(tmp_path)
    store.save("cells", "a", {"status": "done"})
    assert store.load("cells", "a") == {"status": "done"}
    (tmp_path / "cells" / "a.json").write_text('{"sta', encoding="utf-8")
    with pytest.raises(UsageError, match=r"a\.json was damaged or changed"):
        store.load("cells", "a")


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_specs_in_the_repository_can_be_read(path):
    spec = read(path)
    named = [name for grid in spec.grid for name in grid.categories]
    cells = expand(spec, list(dict.fromkeys([*named, "toothbrush"])))
    assert len(cells) == len(set(cells)) > 1
