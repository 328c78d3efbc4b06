"""One-line messages for errors between the command line and the task: Hydra's, OmegaConf's and the disk's."""

from __future__ import annotations

import difflib
import errno
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ral_system import conf
from ral_system.config.commands import CommandConfig
from ral_system.config.known import did_you_mean, is_known, known_keys, open_keys, takes_list
from ral_system.config.variants import CHOSEN_AS_GROUPS, GIVEN_WHOLE, keys_to_suggest, which_has
from ral_system.errors import ConfigError, RalError, SetupError
from ral_system.planning.remedies import full_device, unfit_torchvision

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
    return full_device(error, "this process") or unfit_torchvision(error)


def explain_import(error: ImportError) -> RalError:
    """Convert an import error that the user can fix to a RalError; raise any other one, which is a bug."""
    if (unfit := unfit_torchvision(error)) is None:
        raise error
    return unfit


def fail(error: RalError, exit_code: int | None = None) -> NoReturn:
    """Print a line per problem on stderr, and exit with the error's code unless another is given."""
    for line in error.lines:
        print(f"error: {line}", file=sys.stderr)
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


def wrong_option(message: str) -> str:
    """Add to argparse's message that settings have no dashes, where one was given as an option."""
    settings = message.startswith("unrecognized arguments: --")
    return f"{message}; {'a setting is KEY=VALUE, without dashes; ' if settings else ''}see {command()} --help"


def _unknown(kind: type[CommandConfig], key: str) -> str:
    if key.startswith("data.sources.") and is_known(key, kind):
        name = key.split(".")[2]
        return f"{key}: no source is called {name}; add it with +data/source@data.sources.{name}=columns"
    group = key.rpartition(".")[0]
    if key in open_keys(kind):
        return f"{key}: a new entry needs a +, as in +{key}.NAME=VALUE"
    if group in open_keys(kind):
        return f"{key}: a new entry needs a +; write +{key}=VALUE"
    if group in GIVEN_WHOLE and is_known(key, kind):
        return f"{key}: {group}=null has no such key; give all of it, as in {GIVEN_WHOLE[group]}"
    if "@" in key:
        return f"{key}: {_no_group(key.partition('@')[0].lstrip('+'))}"
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
    if not options:
        return f"{group}={option}: {_no_group(group)}"
    near = difflib.get_close_matches(option, options, 1)
    meant = f"did you mean {group}={near[0]}? There are" if near else "use one of"
    return f"{group}={option}: no such option; {meant} {', '.join(options)}"


def _no_text(kind: type[CommandConfig]) -> str:
    """Name the group, which Hydra does not, as it stands on the command line."""
    given = [argument.partition("=") for argument in sys.argv[1:] if _is_group(argument.partition("=")[0].lstrip("+"))]
    wrong = next((f"{group}={value}" for group, _, value in given if value in ("", "null", "~") or value.isdigit()), "")
    group = wrong.partition("=")[0] or "GROUP"
    return f"{wrong or 'a group'}: not the name of an option; write {group}=OPTION, or leave it out"


def _override_in_file(kind: type[CommandConfig], file: str, given: str) -> str:
    group = given.partition("@")[0].removeprefix("experiment/")
    if _is_group(group):
        return (
            f"{file}.yaml: override {group} finds no such group below experiment; write override /{group}, with a "
            'slash, in a file that begins with "# @package _global_"'
        )
    return f"{file}.yaml: override /{group}: {_no_group(group)}"


def _no_group(group: str) -> str:
    groups = sorted({str(file.parent.relative_to(_CONF)) for file in _CONF.glob("*/**/*.yaml")})
    near = difflib.get_close_matches(group, groups, 1)
    return f"no such group; did you mean {near[0]}?" if near else f"no such group; use one of {', '.join(groups)}"


def _is_group(name: str) -> bool:
    return bool(name) and (_CONF / name).is_dir()


def _twice(kind: type[CommandConfig], group: str) -> str:
    if any(argument.startswith(f"+{group}=") for argument in sys.argv[1:]):
        return f"+{group}: the group is there already; write it without the +"
    return f"{group}: a file chooses the group a second time; write override /{group} there"


def _unresolved(kind: type[CommandConfig], says: str, key: str) -> str:
    says = re.sub(r"^\w+ raised while resolving interpolation: ", "", says).strip('"')
    return f"{key}: {says}; correct what stands between ${{ and }}"


def _several(kind: type[CommandConfig], key: str, values: str) -> str:
    as_list = f", or write {key}=[{values}]" if takes_list(key.lstrip("+"), kind) else ""
    return f"{key}={values}: several values; add -m to run a job for each{as_list}"


_CONF = Path(conf.__file__).parent
_OF_HYDRA: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"^Could not override '([^'@]*)", _unknown),
    (r"^Could not delete (?:from config\. )?'([^'=@]*)([^']*)'(?: does not exist|\. No match)", _not_there),
    (r"^Override (\S+?)(?:=\S*)? looks like a config group override, but", _unknown),
    (r"Could not find '([^']*)/([^']*)'(?:.*Available options in '[^']*': (.*))?", _no_option),
    (
        r"^Could not append to config\. An item is already at '([^']*)'",
        lambda _, key: f"+{key}: the key is there already; write it without the +",
    ),
    (r"^Multiple values for (\S+)\. To", _twice),
    (r"^In '([^']*)': Could not override '([^']*)'", _override_in_file),
    (r"^Config group override must be a string or a list\.", _no_text),
    (
        r"^Interpolation key '([^']*)' not found full_key: (\S+)",
        lambda _, missing, key: f"{key}=${{{missing}}}: there is no key {missing}; correct it",
    ),
    (r"^(.*interpolation.*) full_key: (\S+)", _unresolved),
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
