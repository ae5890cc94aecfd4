"""A file held by one process at a time."""

from __future__ import annotations

import sys


def hold(file: int) -> bool:
    """Keep everybody else from holding a file until it is closed, which the system does for a process that is killed.

    Args:
        file: Its descriptor.

    Returns:
        Whether it is held now; False where somebody else holds it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
