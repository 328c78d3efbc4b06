"""One line for what goes wrong between the command line and the task: Hydra's, OmegaConf's and the disk's errors."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path
from typing import NoReturn

from ral_system.errors import ConfigError, RalError, SetupError

_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of the file system that a user can act on; others are bugs and keep their traceback."""


def explain(error: Exception) -> RalError | None:
    """What a user can act on, in one line; None for a bug."""
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, RalError):
        return error
    if isinstance(error, OmegaConfBaseException):
        return ConfigError(one_line(error))
    if isinstance(error, OSError) and error.errno in _MACHINE:
        return SetupError(f"{error.filename or 'the disk'}: {error.strerror}; make room or choose another runs_dir")
    return None


def fail(error: RalError, exit_code: int | None = None) -> NoReturn:
    """One line on stderr, and the error's exit code unless another is given."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(error.exit_code if exit_code is None else exit_code)


def one_line(error: Exception) -> str:
    """Hydra's words without its pages, and what to do."""
    from omegaconf.errors import MissingMandatoryValue

    text = " ".join(str(error).split("Config search path")[0].split("See https://hydra.cc")[0].split())
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=???: must be given; add it"
    if text.startswith("Could not override '"):
        key = text.removeprefix("Could not override '").split("'")[0]
        return f"{key}: unknown key; {command()} --cfg job shows the known ones"
    if found := re.search(r"Could not find '([^']*)/([^']*)'(?:.*Available options in '[^']*': (.*))?", text):
        group, option, known = found.groups()
        return f"{group}={option}: no such option; use one of {', '.join((known or '').split())}"
    if override := getattr(error, "override", None):
        return f"override {override!r} cannot be read ({text}); write key=value, in quotes if it has special signs"
    return text


def command() -> str:
    """The name this program was called by."""
    return Path(sys.argv[0]).name
