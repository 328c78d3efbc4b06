"""What every command shares: Hydra composes the configuration, mistakes become one line and an exit code."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ral_system import __version__
from ral_system.config.schema import RunConfig
from ral_system.config.validate import parse_config
from ral_system.errors import ConfigError, RalError, SetupError

_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of the file system that a user can act on; others are bugs and keep their traceback."""


def run_with_config(task: Callable[[RunConfig], None], *, doc: str) -> None:
    """Run `task` with the configuration from the command line. Exit codes: 0 done, 2 wrong input, 1 anything else."""
    if "--version" in sys.argv[1:]:  # Hydra would print its own
        print(f"ral-system {__version__}")
        return
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed with a traceback
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell leaves it ignored in its background jobs
        signal.signal(number, _interrupt)
    parser = get_args_parser()
    # Hydra parses again, and would answer a wrong option with pages.
    parser.error = lambda message: fail(ConfigError(f"{message}; see {_command()} --help"))  # type: ignore[method-assign]
    parser.parse_args()

    composed = False

    def with_container(container: DictConfig) -> None:
        nonlocal composed
        composed = True
        try:
            plain = plain_container(OmegaConf.to_container(container, resolve=True, throw_on_missing=True))
            task(parse_config(plain))
        except RalError as error:
            fail(error)
        except OmegaConfBaseException as error:  # here, since Hydra prints a line of its own about what passes it
            fail(ConfigError(_one_line(error)))
        except OSError as error:
            if error.errno not in _MACHINE:
                raise
            fail(SetupError(f"{error.filename or 'the disk'}: {error.strerror}; make room or choose another runs_dir"))

    with_container.__doc__ = doc
    try:
        hydra.main(version_base=None, config_path="pkg://conf", config_name="config")(with_container)()
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        fail(ConfigError(_one_line(error)))
    except ValueError as error:
        if composed:
            raise
        fail(ConfigError(_one_line(error)))  # Hydra's own, of a group set to null
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def plain_container(container: Any) -> dict[str, Any]:
    """A composed configuration without Hydra's own keys."""
    return {key: value for key, value in container.items() if key not in ("hydra", "experiment")}


def fail(error: RalError) -> NoReturn:
    """One line on stderr, and the error's exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(error.exit_code)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _one_line(error: Exception) -> str:
    """Hydra's words without its pages, and what to do."""
    from omegaconf.errors import MissingMandatoryValue

    text = " ".join(str(error).split("Config search path")[0].split("See https://hydra.cc")[0].split())
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=???: must be given; add it"
    if text.startswith("Could not override '"):
        key = text.removeprefix("Could not override '").split("'")[0]
        return f"{key}: unknown key; {_command()} --cfg job shows the known ones"
    if found := re.search(r"Could not find '([^']*)/([^']*)'(?:.*Available options in '[^']*': (.*))?", text):
        group, option, known = found.groups()
        return f"{group}={option}: no such option; use one of {', '.join((known or '').split())}"
    if override := getattr(error, "override", None):
        return f"override {override!r} cannot be read ({text}); write key=value, in quotes if it has special signs"
    return text


def _command() -> str:
    return Path(sys.argv[0]).name
