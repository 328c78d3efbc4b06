"""One-line messages for errors between the command line and the task: Hydra's, OmegaConf's and the disk's."""

from __future__ import annotations

import difflib
import errno
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ral_system.config.commands import CommandConfig
from ral_system.config.known import did_you_mean, is_known, known_keys, open_keys, takes_list
from ral_system.config.variants import CHOSEN_AS_GROUPS, keys_to_suggest, which_has
from ral_system.errors import ConfigError, RalError, SetupError

_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of the file system that a user can act on; others are bugs and keep their traceback."""


def explain(error: Exception, kind: type[CommandConfig]) -> RalError | None:
    """Convert an error the user can fix to a RalError; return None for a bug."""
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, RalError):
        return error
    if isinstance(error, OmegaConfBaseException):
        return ConfigError(one_line(error, kind))
    if isinstance(error, OSError) and error.errno in _MACHINE:
        return SetupError(f"{error.filename or 'the disk'}: {error.strerror}; make room or choose another runs_dir")
    return None


def fail(error: RalError, exit_code: int | None = None) -> NoReturn:
    """Print one line on stderr, and exit with the error's code unless another is given."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(error.exit_code if exit_code is None else exit_code)


def one_line(error: Exception, kind: type[CommandConfig]) -> str:
    """Shorten Hydra's message to one line and add a remedy."""
    from omegaconf.errors import MissingMandatoryValue

    text = " ".join(str(error).split("Config search path")[0].split("See https://hydra.cc")[0].split())
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=???: must be given; add it"
    for pattern, say in _OF_HYDRA:
        if found := re.search(pattern, text):
            return say(kind, *found.groups())
    if override := getattr(error, "override", None):
        remedy = "write key=value, and quote it if it contains special characters"
        return f"override {override!r} cannot be read ({text}); {remedy}"
    return text


def _unknown(kind: type[CommandConfig], key: str) -> str:
    if key.startswith("data.sources.") and is_known(key, kind):
        name = key.split(".")[2]
        return f"{key}: no source is called {name}; add it with +data/source@data.sources.{name}=columns"
    if key in open_keys(kind):
        return f"{key}: a new entry needs a +, as in +{key}.NAME=VALUE"
    if key.rpartition(".")[0] in open_keys(kind):
        return f"{key}: a new entry needs a +; write +{key}=VALUE"
    if key.startswith("learner.lora.") and is_known(key, kind):
        whole = "learner.lora={rank: 16, alpha: 32, targets: [q_proj, k_proj, v_proj, o_proj], vision: false}"
        return f"{key}: learner.lora=null has no such key; give all of it, as in '{whole}'"
    if elsewhere := which_has(key, kind):
        return f"{key}: unknown key here; choose {elsewhere}"
    given = (argument.lstrip("+~").partition("=") for argument in sys.argv[1:])
    value = next((value for name, _, value in given if name == key), None)
    inner = CHOSEN_AS_GROUPS.keys() & known_keys(kind)  # with a slash
    known = keys_to_suggest(kind) - inner | {one.replace(".", "/") for one in inner} | {"experiment"}
    hint = did_you_mean(key, known, value or None)
    return f"{key}: unknown key; {hint or f'{command()} --cfg job shows the known ones'}"


def _not_there(kind: type[CommandConfig], key: str, rest: str) -> str:
    if is_known(key, kind) or which_has(key, kind) or key == "experiment":
        return f"~{key}{rest}: key not present; remove the override"
    return _unknown(kind, key)


def _no_option(kind: type[CommandConfig], group: str, option: str, known: str | None) -> str:
    if group == "data" and Path(option).suffix:
        return (
            f"data={option}: no such option; a file is given as data=files +data/source@data.sources.mine=columns "
            f"data.sources.mine.path={option}"
        )
    options = (known or "").split()
    near = difflib.get_close_matches(option, options, 1)
    meant = f"did you mean {group}={near[0]}? There are" if near else "use one of"
    return f"{group}={option}: no such option; {meant} {', '.join(options)}"


def _several(kind: type[CommandConfig], key: str, values: str) -> str:
    as_list = f", or write {key}=[{values}]" if takes_list(key.lstrip("+"), kind) else ""
    return f"{key}={values}: several values; add -m to run a job for each{as_list}"


_OF_HYDRA: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"^Could not override '([^'@]*)", _unknown),
    (r"^Could not delete (?:from config\. )?'([^'=@]*)([^']*)'(?: does not exist|\. No match)", _not_there),
    (r"^Override (\S+?)(?:=\S*)? looks like a config group override, but", _unknown),
    (r"Could not find '([^']*)/([^']*)'(?:.*Available options in '[^']*': (.*))?", _no_option),
    (
        r"^Could not append to config\. An item is already at '([^']*)'",
        lambda _, key: f"+{key}: the key is there already; write it without the +",
    ),
    (
        r"^Multiple values for (\S+)\. To",
        lambda _, key: f"+{key}: the group is there already; write it without the +",
    ),
    (r"^Ambiguous value for argument '([^'=]*)=([^']*)' 1", _several),
    (
        r"^Sweep parameters '([^']*)' requires",
        lambda _, sweep: f"{sweep}: several values; add -m to run a job for each",
    ),
    (
        r"does not support sweep type : INTERVAL_SWEEP",
        lambda _: (
            "interval(…) needs a sweeper that draws from it, such as hydra/sweeper=optuna; or list values as key=1,2"
        ),
    ),
)
"""Hydra messages and their replacements."""


def command() -> str:
    """Return the name by which this program was called."""
    return Path(sys.argv[0]).name
