"""Wait for what has no event of its own."""

import time

WAIT_S = 20


def until(condition, within_s=WAIT_S):
    """Poll until the condition holds; gives what it gave."""
    end = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {within_s} s"
        time.sleep(0.002)
    return found
