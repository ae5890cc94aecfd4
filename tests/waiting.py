"""Wait for what has no event of its own."""

import time

WAIT_S = 20


def until(condition):
    """Poll until the condition holds; gives what it gave."""
    end = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {WAIT_S} s"
        time.sleep(0.002)
    return found
