"""README.md and the pages under docs/, as the tests of the documentation read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pages(repository: Path) -> list[Path]:
    """README.md and every page under docs/."""
    return [repository / "README.md", *sorted((repository / "docs").rglob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in one language, in their order."""
    return [code for found, code in FENCE.findall(text) if found == language]


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of every `makel` in the shell blocks of a page, up to a pipe or a redirection."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # the environment
                words.pop(0)
            if words and words[0] == "makel":
                ends = [place for place, word in enumerate(words) if word in ("|", ">", ">>", "&&", ";")]
                yield words[1 : min(ends, default=len(words))]


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
