"""Tasks of a Ray cluster: the one in RAY_ADDRESS, or one on this machine for as long as the run takes.

On a cluster every machine needs makel with the same extras, and sees the folders of data and results under the same
paths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from makel.errors import MissingExtraError, UsageError
from makel.scale import Lost, Result, Task, thread_limits

_RETRIES = 1


def run(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int, threads: int, gpus: float = 0
) -> Iterator[tuple[Task, Result | Lost]]:
    """See `makel.scale.Engine`. A cluster that is already there runs as many tasks at once as it has room for.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: The cluster has no such GPU.
    """
    if find_spec("ray") is None:
        raise MissingExtraError("engine 'ray'", "ray")
    if not tasks:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # lines without a network have nobody to tell
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without a GPU leaves the variables alone
    ray: Any = import_module("ray")  # it has no types worth checking

    local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers * threads}
    if local:
        local |= {"include_dashboard": False, "_system_config": {"task_oom_retries": _RETRIES}}
    ray.init(
        **local, runtime_env={"env_vars": thread_limits(threads)}, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        if gpus > ray.cluster_resources().get("GPU", 0):
            raise UsageError(f'the Ray cluster has no GPU and each task asks for {gpus:g}: set device = "cpu"')
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=_RETRIES)(function)
        running = {remote.remote(task): task for task in tasks}
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                task = running.pop(reference)
                try:
                    result: Result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield task, Lost(" ".join(str(error).split()))
                    continue
                yield task, result
    finally:
        ray.shutdown()
