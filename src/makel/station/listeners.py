"""Those who want to hear of every decision or change: each has a thread and a short queue, and holds nobody up."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Listeners(Generic[T]):
    """Tells things, such as decisions, to whoever listens, in their order. Thread-safe."""

    def __init__(self, queue: int = 1000) -> None:
        """Nobody listens yet.

        Args:
            queue: Things kept for a listener that is slow. Of more it misses the oldest; with decisions it sees that
                from the gap in the numbers, and finds them in the record.
        """
        self._queue = queue
        self._lock = threading.Lock()
        self._listeners: list[_Listener[T]] = []

    def add(self, callback: Callable[[T], None]) -> Callable[[], None]:
        """Call somebody for everything from now on, on a thread of its own.

        Returns:
            What ends that. It waits for a call that is under way, unless it is called from within.
        """
        listener = _Listener(callback, self._queue)
        with self._lock:
            self._listeners.append(listener)

        def remove() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)
            listener.stop()

        return remove

    def tell(self, told: Sequence[T]) -> None:
        """Hand things to everybody who listens; never waits for any of them."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener.hand(told)

    def close(self) -> None:
        """Tell everybody what is left, and end."""
        with self._lock:
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.stop()


class _Listener(Generic[T]):
    def __init__(self, callback: Callable[[T], None], queue: int) -> None:
        self._callback = callback
        self._waiting: deque[T] = deque(maxlen=queue)
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._call, name="makel-listener", daemon=True)
        self._thread.start()

    def hand(self, told: Sequence[T]) -> None:
        with self._changed:
            self._waiting.extend(told)
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _call(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if not self._waiting:
                    return
                told = self._waiting.popleft()
            try:
                self._callback(told)
            except Exception:
                _log.exception("a listener failed on %.100r; it is told of the next one", told)
