"""Engines: run one function on many tasks, in processes of this machine or as tasks of a Ray cluster.

Both have one interface, `run(function, tasks, workers=, threads=, gpus=)`: an iterator of each finished task with what
the function gave, in the order they finish. A worker that dies takes nothing with it: its task is tried once more, and
given up as `Lost` when that fails as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeVar, cast

from makel.errors import UsageError

ENGINES = ("process", "ray")

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """What became of a task whose workers died, twice.

    Attributes:
        reason: How, in words.
    """

    reason: str


class Engine(Protocol):
    """What runs tasks."""

    def __call__(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        workers: int,
        threads: int,
        gpus: float = 0,
    ) -> Iterator[tuple[Task, Result | Lost]]:
        """Run `function` on every task.

        Args:
            function: A function at the top of a module; it should return its errors, for one it raises costs a worker.
            tasks: Its arguments; they and the results are pickled.
            workers: Tasks that run at once.
            threads: Threads each may use, told to it by OMP_NUM_THREADS and its kin.
            gpus: GPUs each task claims, for engines that hand them out.

        Yields:
            Each task with what it gave, as it finishes.
        """


def engine(name: str) -> Engine:
    """An engine by its name, one of `ENGINES`.

    Raises:
        UsageError: There is no such engine.
        MissingExtraError: Its package is not installed; raised when it is asked to run.
    """
    if name not in ENGINES:
        raise UsageError(f"engine {name!r} is not known: choose one of {', '.join(ENGINES)}")
    run: Any = import_module(f"{__name__}.{name}").run
    return cast("Engine", run)


def thread_limits(threads: int) -> dict[str, str]:
    """The environment that keeps a worker's libraries to so many threads; they read it when they are imported."""
    return dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
