"""Commands for the tests of what runs commands."""

import os
import signal
import sys
import time
from pathlib import Path


def exit_0() -> None:
    """Nothing to do."""


def exit_1() -> None:
    sys.exit(1)


def exit_2() -> None:
    sys.exit(2)


def count() -> None:
    """One letter more in the file for every call."""
    with Path(sys.argv[1]).open("a") as file:
        file.write("x")


def slow_to_end() -> None:
    """Runs until it is interrupted, then needs a second to tidy up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    folder = Path(sys.argv[1])
    try:
        (folder / "started").touch()
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(1)
        (folder / "ended").write_text("tidily")
        sys.exit(130)


def meet() -> None:
    """Ends when as many calls as `argv[3]` says have left a file in the folder `argv[1]`, else in failure."""
    folder = Path(sys.argv[1])
    (folder / sys.argv[2]).touch()
    deadline = time.monotonic() + 20
    while len(list(folder.iterdir())) < int(sys.argv[3]):
        if time.monotonic() > deadline:
            sys.exit(1)
        time.sleep(0.02)
    print("met")


def ends_well_when_told() -> None:
    """Writes its process id to the folder `argv[1]`, and ends without an error at a SIGTERM."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Path(sys.argv[1], f"pid_{os.getpid()}").touch()
    time.sleep(60)
    sys.exit(1)
