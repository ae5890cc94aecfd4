"""Room for what is held at once: bytes are taken before they are held, and refused where there is no room."""

from __future__ import annotations

import threading

from makel.errors import Overloaded


class Budget:
    """A number of bytes that many may hold together. Thread-safe.

    Attributes:
        limit_bytes: How many.
    """

    def __init__(self, limit_bytes: int, what: str) -> None:
        """Start empty.

        Args:
            limit_bytes: Bytes held at once, at most.
            what: What holds them, for the message: "images under way".
        """
        self.limit_bytes, self._what = limit_bytes, what
        self._held_bytes = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return self._held_bytes

    def take(self, size_bytes: int) -> None:
        """Hold bytes until `give`.

        Raises:
            Overloaded: There is no room; nothing is held.
        """
        with self._lock:
            if self._held_bytes + size_bytes > self.limit_bytes:
                raise Overloaded(
                    f"{self._what} hold {self._held_bytes / 1e6:.0f} MB, and {size_bytes / 1e6:.1f} MB more would be "
                    f"over {self.limit_bytes / 1e6:.0f} MB: send it again later"
                )
            self._held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Hold them no longer."""
        with self._lock:
            self._held_bytes -= size_bytes
