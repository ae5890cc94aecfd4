"""Text from outside, made harmless for what shows it: names of files and parts may hold anything.

A terminal obeys what it is shown: escape sequences clear it, rename its window or make a reject look like a pass. A
spreadsheet runs what looks like a formula, in every cell that it makes of a file.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_FORMULA = re.compile(r"""(^|[;|])(?=[\s"]*[=+\-@＝＋－＠])""")


def printable(text: str) -> str:
    r"""Text on one line, with an escape such as ``\x1b`` in place of what is not a visible character or a space.

    That is: control characters, line breaks, characters that turn the direction of writing or cannot be seen, and bytes
    that are no text.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or unicodedata.category(each) == "Zs" else repr(each)[1:-1] for each in text
    )


def cell(value: Any) -> Any:
    """A value for a cell of CSV, in which no spreadsheet finds a formula.

    Text is made `printable` and gets an apostrophe in front of what begins like a formula: at its start, and behind a
    semicolon or a bar, where a spreadsheet whose list separator that is begins another cell, whatever is quoted. (Tabs
    and line breaks are gone, and commas part the cells as they should.) Anything but text stays as it is.
    """
    return _FORMULA.sub(r"\1'", printable(value)) if isinstance(value, str) else value
