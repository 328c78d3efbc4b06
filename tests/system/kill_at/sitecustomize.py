"""On PYTHONPATH: the process kills itself, as `kill -9` would, at the moment that KILL_AT describes.

KILL_AT is a regular expression for "<audit event> <path> <mode>", for example `open .*/manifest[.]json w`.
"""

import os
import re
import signal
import sys

_MOMENT = re.compile(os.environ["KILL_AT"])


def _watch(event: str, args: tuple[object, ...]) -> None:
    if event in ("open", "os.mkdir", "os.rename", "shutil.rmtree"):
        path = args[1] if event == "os.rename" else args[0]  # what it is renamed to
        if _MOMENT.fullmatch(f"{event} {path}" + (f" {args[1]}" if event == "open" else "")):
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(_watch)
