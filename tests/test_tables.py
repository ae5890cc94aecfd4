"""What README and docs say was measured is what the committed results say."""

import csv
import json

import pytest

PAGE = "<!-- results: {} -->\nold\n<!-- end of results -->\n"
CAME_FROM = {"seed": 0, "machine": "one, 2 cores", "versions": json.dumps({"torch": "2"}), "commit": "abc"}


@pytest.fixture
def script(repository, monkeypatch):
    """benchmarks/write_tables.py as its command finds it: beside the modules it imports."""
    monkeypatch.syspath_prepend(repository / "benchmarks")
    import write_tables

    return write_tables


@pytest.fixture
def results(script, tmp_path, monkeypatch):
    """A folder of results in place of the committed ones; gives a function that writes a file of rows there."""
    import results_tables

    monkeypatch.setattr(results_tables, "RESULTS", tmp_path)

    def write(name, *rows):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, {**rows[0], **CAME_FROM})
            writer.writeheader()
            writer.writerows({**CAME_FROM, **row} for row in rows)

    return write


def cells(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks/index.md"])
def test_the_pages_hold_what_the_results_say(script, repository, page):
    text = (repository / page).read_text(encoding="utf-8")
    assert page in script.PAGES
    assert "<!-- results: " in text
    assert script.filled(text) == text, "run benchmarks/write_tables.py"


def test_the_plots_are_those_of_the_results(script):
    for name, svg in script.figures().items():
        assert (script.FIGURES / f"{name}.svg").read_text(encoding="utf-8") == svg, "run benchmarks/write_tables.py"


def test_every_row_says_where_it_comes_from(script):
    found = {path.name for path in script.RESULTS.glob("*.csv")}
    assert found >= {"first_model.csv", "here.csv"}
    for name in found & {needed for _, needed in script.BLOCKS.values()}:
        with (script.RESULTS / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows
        for row in rows:
            assert row["machine"]
            assert row["commit"]
            assert row["seed"]
            assert "numpy" in row["versions"]


def test_a_block_without_results_is_empty(script, results):
    for name in script.BLOCKS:
        assert script.filled(PAGE.format(name)) == PAGE.format(name).replace("old\n", "")
    assert script.figures() == {}


def peer_row(who, fit_s, ms, image, pixel, miss="", error="", category="toothbrush", size=256):
    figures = {"fit_s": fit_s, "ms_p50": ms, "ms_p99": "", "image_auroc": image, "pixel_auroc": pixel, "aupro_30": ""}
    promises = {"promise": "" if miss == "" else 1 / 11, "miss_5": miss, "false_reject_5": "" if miss == "" else 0.0}
    row = {"category": category, "who": who, "size": size, **figures, **promises, "peak_mb": 500, "error": error}
    return {key: "" if value is None else value for key, value in row.items()}


def test_peers_stand_beside_ours_with_ratios_and_bars(script, results):
    results(
        "peers.csv",
        peer_row("makel", 20, 10, 1.0, 0.98, 0.1),
        peer_row("anomalib patchcore", 44, 33, 0.98, 0.991, 0.2),
        peer_row("makel", 24, 12, 1.0, 0.99, 0.0),
        peer_row("anomalib padim", 11, 110, 0.9, 0.9, 0.5),
        peer_row("anomalib dfm", "", "", "", "", error="out of memory"),
    )
    text = script.filled(PAGE.format("peers"))
    assert "## Beside Anomalib" in text
    head, _, *body = cells(text)
    assert (head[2:5], head[-1]) == (["found at 5 %", "good rejected", "promised"], "peak MB")
    assert {"AUPRO", "p99, ms"}.isdisjoint(head), "a column without a figure"
    kept = [head.index(name) for name in ("image AUROC", "pixel AUROC", "fit, s", "fit, of ours", "p50, of ours")]
    assert [[line[0], line[1], line[2], *(line[at] for at in kept)] for line in body] == [
        ["toothbrush", "**makel**", "0.95 ± 0.07", "1.000 ± 0.000", "0.985 ± 0.007", "22", "1.0x", "1.0x"],
        ["toothbrush", "anomalib patchcore", "0.80", "0.980", "0.991", "44", "2.0x", "3.0x"],
        ["toothbrush", "anomalib padim", "0.50", "0.900", "0.900", "11", "0.50x", "10.0x"],
        ["toothbrush", "anomalib dfm", "–", "failed", "failed", "–", "–", "–"],
    ]
    assert body[0][4] == "9.1 %"
    from bars import peers_bars

    assert [(bar.what, bar.aim, bar.measured, bar.met) for bar in peers_bars()] == [
        ("toothbrush, image AUROC", "at least 0.998", "1.000", True),
        ("toothbrush, pixel AUROC", "at least 0.992", "0.985", False),
        # A set may be 0.01 behind its best peer.
        (
            "toothbrush, image AUROC against the best peer",
            "at least 0.980 - 0.01 (anomalib patchcore)",
            "1.000",
            True,
        ),
        (
            "toothbrush, pixel AUROC against the best peer",
            "at least 0.991 - 0.01 (anomalib patchcore)",
            "0.985",
            True,
        ),
        ("toothbrush, an image against PatchCore", "at least 3x as fast", "3.0x", True),
    ]


def test_the_readme_leads_with_what_a_promise_finds_and_takes_means_of_whole_columns(script, results):
    results(
        "peers.csv",
        peer_row("makel", 20, 10, 0.99, 0.98, 0.1),
        peer_row("anomalib padim", 40, 30, 0.97, 0.96, 0.3),
        peer_row("anomalib padim", "", "", 0.98, 0.97, 0.2, size=384),
        peer_row("makel", 30, 20, 0.95, None, 0.2, category="aliens"),
        peer_row("anomalib padim", 60, 50, 0.91, None, 0.6, category="aliens"),
    )
    text = script.filled(PAGE.format("peers_readme"))
    assert cells(text) == [
        ["defects found", "promised", "**makel** at 256", "PaDiM at 256", "PaDiM at 384"],
        ["---"] * 5,
        ["toothbrush", "9.1 %", "0.90", "0.70", "0.80"],
        ["aliens", "9.1 %", "0.80", "0.40", "–"],
        ["**mean**", "", "0.85", "0.55", "–"],
        ["good images rejected, mean", "", "0.00", "0.00", "–"],
        ["image AUROC, mean", "", "0.970", "0.940", "–"],
        ["pixel AUROC, mean", "", "0.980", "0.960", "0.970"],  # all there is: aliens has no masks
        ["fit, s, median", "", "25", "50", "–"],
        ["ms an image, median", "", "15.0", "40.0", "–"],
    ]


def test_each_size_of_the_peers_has_a_table_and_ours_of_the_nearest_size(script, results):
    results(
        "peers.csv",
        peer_row("makel", 20, 10, 0.99, 0.98, 0.1),
        peer_row("makel", 50, 30, 0.97, 0.96, 0.0, size=320),
        peer_row("anomalib padim", 40, 30, 0.97, 0.96, 0.3),
        peer_row("anomalib padim", "", "", 0.98, 0.97, 0.2, size=384),
        peer_row("makel", 30, 20, 0.95, "", 0.2, category="aliens"),
        peer_row("anomalib padim", "", "", 0.91, "", 0.6, category="aliens"),
    )
    text = script.filled(PAGE.format("peers"))
    small, _, large = text.partition("Anomalib's at 384x384:")
    assert "Anomalib's at 256x256:" in small
    assert [line[:3] for line in cells(small)[2:]] == [
        ["toothbrush", "**makel**", "0.90"],
        ["toothbrush", "anomalib padim", "0.70"],
        ["aliens", "**makel**", "0.80"],
        ["aliens", "anomalib padim", "0.40"],
    ]
    assert [line[:3] for line in cells(large)[2:]] == [
        ["toothbrush", "**makel** at 320", "1.00"],
        ["toothbrush", "anomalib padim", "0.80"],
    ]
    from bars import peers_bars

    whats = {bar.what: bar.measured for bar in peers_bars()}
    assert whats["mean of 2 sets, defects found at a 5 % promise at 256 against the best peer"] == "0.850"
    assert whats["toothbrush, image AUROC at 384 against the best peer"] == "0.970"
    assert not any(what.startswith("mean of") and "384" in what for what in whats)
    assert not any(what.startswith("toothbrush, defects") for what in whats)  # too few of one set say what is found


def test_times_of_another_machine_are_compared_with_nothing(script, results):
    results(
        "peers.csv",
        peer_row("makel", 20, 10, 0.99, 0.98, 0.1),
        {**peer_row("anomalib padim", 40, 30, 0.97, 0.96, 0.3), "machine": "another"},
        {**peer_row("anomalib dfm", "", "", 0.97, 0.96, 0.3), "machine": "another"},
    )
    text = script.filled(PAGE.format("peers"))
    assert [line[1] for line in cells(text)[2:]] == ["**makel**", "anomalib padim ¹", "anomalib dfm"]
    assert "¹ Measured on another machine" in text
    assert cells(script.filled(PAGE.format("peers_readme")))[-2:] == [
        ["fit, s, median", "", "20", "–", "–"],
        ["ms an image, median", "", "10.0", "–", "–"],
    ]


def test_peers_alone_are_shown_too(script, results):
    results("peers.csv", peer_row("anomalib padim", "", "", 0.97, 0.96, 0.3))
    assert [line[:2] for line in cells(script.filled(PAGE.format("peers")))[2:]] == [["toothbrush", "anomalib padim"]]
    assert "PaDiM" in script.filled(PAGE.format("peers_readme"))
    from bars import peers_bars

    assert list(peers_bars()) == []


def scaling_row(n_images, fit_s, peak_mb):
    stages = json.dumps({"features": fit_s - 1, "training": 1})
    floor = {"decode_s": n_images / 100, "backbone_s": n_images / 200}
    return {"n_images": n_images, "size_px": 1024, "fit_s": fit_s, "stages_s": stages, "peak_mb": peak_mb, **floor}


def test_fitting_is_shown_stage_by_stage_beside_its_floor(script, results):
    results(
        "fit_scaling.csv",
        scaling_row(60, 20, 700),
        scaling_row(320, 46, 900),
        scaling_row(1000, 114, 1000),
        scaling_row(4000, 414, 2100),
    )
    text = script.filled(PAGE.format("fit_scaling"))
    assert cells(text)[2] == ["60", "20.0", "19.0", "1.0", "0.6 + 0.3", "700"]
    assert "figures/fit_scaling.svg" in text
    assert "fit: 414 at 4000" in script.figures()["fit_scaling"]
    from bars import fit_scaling_bars

    assert [(bar.measured, bar.met) for bar in fit_scaling_bars()] == [
        ("46.0 s", True),
        ("2100 MB", False),
        ("100 ms, then 100 ms", True),
    ]


def test_more_images_are_plotted_in_the_order_of_their_number(script, results):
    def row(n_images, value, who="makel"):
        figures = {"image_auroc": value, "pixel_auroc": value, "aupro_30": 0.75, "fit_s": 9}
        figures |= {"promise": 0.5, "false_reject_5": 1 - value, "miss_5": 0.25, "error": ""}
        return {"category": "parts", "who": who, "size": 384, "n_images": n_images, "augment": "off", **figures}

    rows = row(50, 0.99), row(5, 0.8), {**row(5, 0.9), "seed": 1}, row(5, 0.7, "anomalib padim")
    results("few_images.csv", *rows, {**row(50, 0.1), "error": "out of memory", "seed": 1})
    text = script.filled(PAGE.format("few_images"))
    assert [[line[1], *line[3:6]] for line in cells(text)[2:]] == [
        ["**makel** at 384", "5", "0.850 ± 0.071", "0.850 ± 0.071"],
        ["**makel** at 384", "50", "0.990", "0.990"],
        ["PaDiM at 384", "5", "0.700", "0.700"],
    ]
    assert [line[7:10] for line in cells(text)[2:4]] == [
        ["0.50", "0.15 ± 0.07", "0.25 ± 0.00"],
        ["0.50", "0.01", "0.25"],
    ]
    assert "![parts, augmentation off](figures/few_images-parts-off.svg)" in text
    svg = script.figures()["few_images-parts-off"]
    assert svg.index("image AUROC: 0.85 at 5<") < svg.index("image AUROC: 0.99 at 50<")


def test_a_plot_of_few_images_has_no_line_of_what_nobody_knows(script, results):
    row = {"category": "parts", "who": "makel", "size": 384, "augment": "off", "image_auroc": 0.8, "pixel_auroc": ""}
    results("few_images.csv", *({**row, "aupro_30": "", "error": "", "n_images": count} for count in (5, 10)))
    svg = script.figures()["few_images-parts-off"]
    assert "image AUROC" in svg
    assert "pixel AUROC" not in svg


def candidate_row(category, candidate, image, seed=0, pixel="", miss=0.25):
    figures = {"image_auroc": image, "pixel_auroc": pixel, "aupro_30": pixel, "miss_5": miss}
    return {"category": category, "candidate": candidate, **figures, "seed": seed}


def test_the_study_shows_what_was_decided_and_every_set(script, results):
    results(
        "study_skip_ae.csv",
        candidate_row("parts", "default", 0.9, pixel=0.8),
        candidate_row("tiles", "default", 0.8),
        candidate_row("parts", "no skips", 0.8, pixel=0.7),
        candidate_row("tiles", "no skips", 0.9),
    )
    text = script.filled(PAGE.format("study"))
    assert "of 2 candidates that have all sets" in text
    assert ["no skips", "0.800", "0.900"] in cells(text)
    assert ["no skips", "0.700 / 0.700", "– / –"] in cells(text)


def test_the_papers_own_settings_stand_beside_the_papers_value(script, results):
    row = {"image_auroc": 0.7, "pixel_auroc": 0.95, "aupro_30": 0.8, "epochs": 31, "training_s": 1790.4}
    results(
        "paper_embedded.csv",
        {"category": "screw", "method": "skip_ae", **row, "paper": 0.98},
        {"category": "aliens", "method": "dfr", **row, "pixel_auroc": "", "aupro_30": "", "paper": ""},
    )
    assert cells(script.filled(PAGE.format("paper_embedded")))[2:] == [
        ["screw", "`skip_ae`", "0.700", "0.950", "0.98", "0.800", "31", "1790"],
        ["aliens", "`dfr`", "0.700", "–", "–", "–", "31", "1790"],
    ]


def test_a_runtime_becomes_the_default_only_if_it_is_faster_and_says_the_same(script, results):
    def row(runtime, p99_ms, gate="passed", flips=0):
        speeds = dict.fromkeys(("p50_ms", "p95_ms", "p99_ms"), p99_ms)
        speeds |= {f"images_per_s_{batch}": 1000 / p99_ms for batch in (1, 8, 32)}
        says = {"gate": gate, "flips": flips, "flips_own": flips // 3, "n_test": 42, "image_auroc": 1.0}
        return {"category": "parts", "runtime": runtime, **speeds, "cold_s": 0.5, **says}

    results(
        "runtimes.csv",
        row("onnxruntime", 12),
        row("openvino", 11),
        row("openvino-int8", 6, "failed", 3),
        row("onnxruntime-int8", 10),
    )
    text = script.filled(PAGE.format("runtimes"))
    assert cells(text)[4][-3:-1] == ["3 of 42", "1 of 42"]
    assert [line[-1] for line in cells(text)[2:]] == [
        "is what runs",
        "no: not 1.2x as fast at p99",
        "no: fails the gate 1 of 1 times, 3 verdicts flip",
        "yes",
    ]


def test_pixel_metrics_are_compared_by_cpu_seconds_and_by_their_error(script, results):
    def row(pixels, cpu_s, error):
        seconds = {"s": 2 * cpu_s, "cpu_s": cpu_s, "sklearn_s": 900, "sklearn_cpu_s": 60}
        return {"pixels": pixels, "error": error, **seconds, "peak_mb": 400, "sklearn_peak_mb": 6400}

    results("metrics_speed.csv", row(1_000_000, 0.1, 1e-12), row(113_049_600, 0.8, 2e-8))
    text = script.filled(PAGE.format("metrics_speed"))
    assert "600.0x and 75.0x as fast" in text
    assert cells(text)[-2:] == [
        ["113.0 million", "makel, five numbers", "1.60", "0.80", "400"],
        ["113.0 million", "scikit-learn, AUROC", "900.00", "60.00", "6,400"],
    ]
    from bars import metrics_speed_bars

    assert [(bar.measured, bar.met) for bar in metrics_speed_bars()] == [("75.0x", False), ("2e-08", False)]
