"""Every method says in its own file what it is after, and where it departs from that."""

import re
from importlib import import_module

import pytest

from makel import methods


@pytest.mark.parametrize("name", methods.names())
def test_the_docstring_names_source_equations_and_numbered_deviations(name):
    doc = import_module(f"makel.methods.{name}").__doc__
    assert re.search(r"^Paper: .{40,}|^No paper of its own", doc, re.MULTILINE)
    assert ("https://" in doc) == ("Paper:" in doc)
    equations = re.findall(r"^ {4}\S.* {2,}\S", doc, re.MULTILINE)
    assert len(equations) >= 3
    numbers = [int(number) for number in re.findall(r"^ ?(\d+)\. ", doc, re.MULTILINE)]
    assert len(numbers) >= 3
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_page_with_its_figure(name, repository):
    folder = repository / "docs" / "methods"
    page = (folder / f"{name}.md").read_text(encoding="utf-8")
    assert f"(figures/{name}.svg)" in page
    assert (folder / "figures" / f"{name}.svg").is_file()
    assert f"]({name}.md)" in (folder / "index.md").read_text(encoding="utf-8")
