"""The one way to the terminal: whatever a name from outside holds, a line is one line and says only what it says."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from makel.escapes import printable


def put(*lines: str, error: bool = False) -> None:
    """Print lines, each on one line; on stderr where they are no results."""
    stream = sys.stderr if error else sys.stdout
    # In one write: another thread's line would else stand in this one.
    stream.write("".join(f"{printable(line)}\n" for line in lines))
    stream.flush()


class Harmless(logging.Formatter):
    """What is logged, without what a terminal would obey."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name of what it overrides
        """The message, on one line."""
        return printable(super().formatMessage(record))

    def formatException(  # noqa: N802  likewise
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        """The traceback, line by line."""
        return "\n".join(printable(line) for line in super().formatException(ei).split("\n"))


def log_harmlessly() -> None:
    """Let what is logged come out harmless where nobody else has set up logging."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Harmless())
