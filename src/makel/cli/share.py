"""A share as people write it: 0.01 or 1%."""

from __future__ import annotations

import typer


def share(text: str | float) -> float:
    """The number behind it; whether it is within its bounds is checked where it is used.

    Raises:
        BadParameter: It is neither a number nor a percentage.
    """
    if isinstance(text, float):  # a default
        return text
    number, is_percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        return float(number) / 100 if is_percent else float(number)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no share: give a number between 0 and 1, such as 0.01, or 1%") from None
