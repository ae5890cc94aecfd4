"""README.md and the pages under docs/, as the tests of the documentation read them."""

from __future__ import annotations

import re
from pathlib import Path

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pages(repository: Path) -> list[Path]:
    """README.md and every page under docs/."""
    return [repository / "README.md", *sorted((repository / "docs").rglob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in one language, in their order."""
    return [code for found, code in FENCE.findall(text) if found == language]


def prose(text: str) -> str:
    """A page without its code: neither blocks nor spans."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def section(text: str, heading: str) -> str:
    """What stands below a heading of the second level, to the next one."""
    _, found, rest = text.partition(f"\n## {heading}\n")
    assert found, f"no heading {heading!r}"
    return rest.partition("\n## ")[0]


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page: their rows, without the heads, each a list of cells."""
    found = re.findall(r"^\|[^\n]*\|\n\|[-:| ]+\|\n((?:\|[^\n]*\|\n)+)", text, re.MULTILINE)
    return [[[cell.strip() for cell in row[1:-1].split(" | ")] for row in body.splitlines()] for body in found]
