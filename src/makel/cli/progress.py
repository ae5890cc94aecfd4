"""Progress bars with the time left: on stderr, and only where a person watches a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")


class Bars:
    """A bar for each stage of a job; call it with the stage, how much is done and how much there is.

    with Bars(quiet=False) as bars:
        fit(data, out, progress=bars)
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._shown = sys.stderr.isatty() and not quiet
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
        if self._progress is None:
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def count(items: Iterable[Item], stage: str, total: int, *, quiet: bool = False) -> Iterator[Item]:
    """Pass `items` on and draw how many of `total` have gone by."""
    with Bars(quiet=quiet) as bars:
        bars(stage, 0, total)
        for done, item in enumerate(items, start=1):
            yield item
            bars(stage, done, total)
