"""A thread that looks at a folder again and again, all day, and never ends in silence."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from makel.errors import MakelError
from makel.images import shown

logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""Seconds until the next look after something outside failed: the share is gone, the record is locked."""


class Patrol:
    """Calls a function again and again.

    Attributes:
        problem: What went wrong in the last call; "" if nothing did.
        stopping: Set when the thread is to end.
    """

    def __init__(self, folder: Path, look: Callable[[], float]) -> None:
        """Get ready; `start` begins.

        Args:
            folder: What is looked at, for messages.
            look: Looks once, and gives the seconds until the next look. Its errors become `problem`, are logged once,
                and do not end the patrol: parts go on coming.
        """
        self.problem = ""
        self.stopping = threading.Event()
        self._path, self._folder, self._look = folder, shown(folder), look
        self._thread = threading.Thread(target=self._run, name=f"makel-{folder.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Let the look at hand finish, and end."""
        self.stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        pause_s = 0.0
        while not self.stopping.wait(pause_s):
            try:
                pause_s, problem = self._look(), ""
            except MakelError as error:
                pause_s, problem = RETRY_S, str(error)
            except OSError as error:
                pause_s, problem = RETRY_S, f"{shown(error.filename or self._folder)}: {error.strerror or error}"
                if isinstance(error, FileNotFoundError) and not self._path.exists():
                    problem = f"{self._folder} is not there: waiting for it"
            except Exception as error:
                logger.exception("looking at %s failed", self._folder)
                pause_s, problem = RETRY_S, f"{type(error).__name__}: {error}"
            if problem != self.problem:
                said = problem or "all is well again"
                logger.warning("%s", said if self._folder in said else f"{self._folder}: {said}")
                self.problem = problem
