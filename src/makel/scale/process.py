"""Worker processes on this machine: started afresh, one task at a time each, and gone when their parent is."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Generic, cast

from makel.scale import Lost, Result, Task, thread_limits

_TRIES = 2
_LEAVE_S = 10.0


@dataclass
class _Worker(Generic[Task]):
    process: BaseProcess
    pipe: Connection
    task: Task
    tries: int


def run(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int, threads: int, gpus: float = 0
) -> Iterator[tuple[Task, Result | Lost]]:
    """See `makel.scale.Engine`. `gpus` is of no use here: every worker sees all of them."""
    del gpus
    waiting = deque((task, 1) for task in tasks)
    busy: dict[Connection, _Worker[Task]] = {}
    idle: list[tuple[BaseProcess, Connection]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                process, pipe = idle.pop() if idle else _start(thread_limits(threads))
                task, tries = waiting.popleft()
                busy[pipe] = _Worker(process, pipe, task, tries)
                _give(pipe, (function, task))
            for pipe in _readable(busy):
                worker = busy.pop(pipe)
                try:
                    result: Result = pipe.recv()
                except (EOFError, OSError):
                    reason = _bury(worker.process, pipe)
                    if worker.tries < _TRIES:
                        waiting.appendleft((worker.task, worker.tries + 1))
                    else:
                        yield worker.task, Lost(reason)
                    continue
                idle.append((worker.process, pipe))
                yield worker.task, result
    finally:
        for worker in busy.values():
            worker.process.kill()
            _bury(worker.process, worker.pipe)
        for process, pipe in idle:
            pipe.close()  # tells it to leave
            process.join(_LEAVE_S)
            process.kill()
            _bury(process, pipe)


def _readable(pipes: Iterable[Connection]) -> list[Connection]:
    """Wait until a worker has answered or died."""
    return cast("list[Connection]", connection.wait(list(pipes)))


def _start(environment: dict[str, str]) -> tuple[BaseProcess, Connection]:
    # Spawned and not forked: threads and locks of torch, OpenCV and ONNX Runtime do not survive a fork.
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, environment), daemon=True)
    process.start()
    theirs.close()  # so that the death of the worker ends the pipe
    return process, ours


def _give(pipe: Connection, message: Any) -> None:
    try:
        pipe.send(message)
    except OSError:  # it died while idle; the end of its pipe will be read next
        return


def _bury(process: BaseProcess, pipe: Connection) -> str:
    """Let go of a worker that is dead or dying, and say how it ended."""
    pipe.close()
    process.join()
    code = process.exitcode or 0
    process.close()
    if code >= 0:
        return f"the worker process ended with exit code {code}"
    meaning = ", which is how the system ends what takes too much memory" if -code == 9 else ""
    return f"the worker process was ended by {signal.Signals(-code).name}{meaning}"


def _serve(pipe: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # before the first task imports anything that reads it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts everybody; the parent ends its workers
    Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        try:
            function, task = pipe.recv()
        except EOFError:
            return
        pipe.send(function(task))


def _leave_with_parent() -> None:
    """A parent that was killed cannot end its workers: whoever starts it again must find the machine free."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
