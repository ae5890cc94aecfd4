"""How long a station that is told to end may take for it."""

from __future__ import annotations

import faulthandler

DRAIN_S = 10.0
"""For so long requests, and images behind them, are waited for."""

STOP_S = 45.0
"""By then the process is gone: requests and images have `DRAIN_S` each, record, pictures and fits the rest."""


def end_within(seconds: float) -> None:
    """End the process after so long, whatever any of its threads does; what they do then is said on stderr."""
    faulthandler.dump_traceback_later(seconds, exit=True)
