"""What README and docs say was measured is what the committed results say."""

import csv
import importlib.util

import pytest


@pytest.fixture(scope="module")
def script(repository):
    spec = importlib.util.spec_from_file_location("write_tables", repository / "benchmarks" / "write_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks/index.md"])
def test_the_pages_hold_what_the_results_say(script, repository, page):
    text = (repository / page).read_text(encoding="utf-8")
    assert page in script.PAGES
    assert "<!-- results: " in text
    assert script.filled(text) == text, "run benchmarks/write_tables.py"


@pytest.mark.parametrize("name", ["first_model.csv", "here.csv", "study_skip_ae.csv"])
def test_every_row_says_where_it_comes_from(script, name):
    with (script.RESULTS / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        assert row["machine"]
        assert row["commit"]
        assert row["seed"]
        assert "torch" in row["versions"]
