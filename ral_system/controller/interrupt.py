"""Ctrl-C and SIGTERM that are not lost.

Python drops an exception that a signal handler raises while a destructor or a callback from C code runs; such moments
are frequent in tensor code. So the request is also remembered, and asked for between steps.
"""

from __future__ import annotations

import signal
from typing import NoReturn

_requested = False


def install() -> None:
    """From now on SIGINT and SIGTERM raise KeyboardInterrupt in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def check() -> None:
    """Raise KeyboardInterrupt if one was requested: it was dropped, or this line would not be reached."""
    if _requested:
        raise KeyboardInterrupt


def _interrupt(*_: object) -> NoReturn:
    global _requested
    _requested = True
    raise KeyboardInterrupt
