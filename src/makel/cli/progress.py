"""Progress on stderr: bars with the time left where a person watches a terminal, JSON lines for a program that asks."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from makel.cli.terminal import put

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")

_EVERY_S = 0.2
"""A program reads a line of a stage at most so often, besides its first and its last."""


class Bars:
    """A bar for each stage of a job; call it with the stage, how much is done and how much there is.

    with Bars(quiet=False) as bars:
        fit(data, out, progress=bars)
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self._as_json = as_json and not quiet
        self._shown = sys.stderr.isatty() and not quiet and not as_json
        self._said: tuple[str, float] = ("", 0.0)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            # stdout stays as it is: results printed meanwhile belong there.
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=Console(stderr=True),
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._progress.start()
        return self

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Draw the bar of a stage, one without an end where `total` is None; a no-op where nobody watches."""
        if self._as_json:
            self._say(stage, done, total)
        if self._progress is None:
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)

    def _say(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if stage != self._said[0] or done == total or now - self._said[1] >= _EVERY_S:
            self._said = (stage, now)
            put(json.dumps({"stage": stage, "done": done, "total": total}), error=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def say(lines: Iterable[str]) -> None:
    """Tell a person something, beside the results."""
    for line in lines:
        put(f"makel: {line}", error=True)


def count(items: Iterable[Item], stage: str, total: int, *, quiet: bool = False) -> Iterator[Item]:
    """Pass `items` on and draw how many of `total` have gone by."""
    with Bars(quiet=quiet) as bars:
        bars(stage, 0, total)
        for done, item in enumerate(items, start=1):
            yield item
            bars(stage, done, total)
