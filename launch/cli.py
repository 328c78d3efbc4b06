"""Shared start of all commands: Hydra composes the configuration; mistakes become one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from ral_system import __version__
from ral_system.config.commands import CommandConfig
from ral_system.errors import ConfigError, RalError
from ral_system.launch.foreign import refuse_foreign, refuse_foreign_sweeps, show_only
from ral_system.launch.jobs import HydraTask, Task
from ral_system.launch.jobs import plain_container as plain_container
from ral_system.launch.mistakes import command, fail, one_line, wrong_option


def run_with_config(task: Task, kind: type[CommandConfig], *, about: str) -> None:
    """Run `task` with the configuration from the command line, with `-m` once per job. `about` begins the help text.

    `kind` is the class of the configuration, and says what the command reads.

    Exit codes: 0 done, 2 wrong input, 1 anything else, also when a job of several failed, 130 interrupted.
    """
    if "--version" in sys.argv[1:]:  # Hydra would print its own
        print(f"ral-system {__version__}")
        return
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from ral_system.launch.hydra_internals import arguments_parser

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed with a traceback
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell leaves it ignored in its background jobs
        signal.signal(number, _interrupt)
    parser = arguments_parser()
    # Hydra parses again, and would answer a wrong option with pages of text.
    parser.error = lambda message: fail(ConfigError(wrong_option(message)))  # type: ignore[method-assign]
    parser.allow_abbrev = False  # --experiment would be --experimental-rerun
    OmegaConf.register_new_resolver("about_command", about.strip, replace=True)
    OmegaConf.register_new_resolver("command", command, replace=True)
    options = parser.parse_args()
    entry = HydraTask(task, kind, options.overrides)
    show_only(kind, resolve=options.resolve)
    refuse_foreign_sweeps(kind)
    if not (options.help or options.hydra_help or options.shell_completion):
        try:
            refuse_foreign(options.overrides, kind)
        except ConfigError as error:
            fail(error)
    try:
        hydra.main(version_base=None, config_path="pkg://ral_system.conf", config_name="config")(entry)()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, RalError):  # a job's failure; a launcher may have run it in another process
            if not entry.outcomes:
                fail(error, exit_code=1)
        elif isinstance(error, (HydraException, OmegaConfBaseException, YAMLError)) or (
            isinstance(error, ValueError) and not entry.called  # Hydra's own error for a group set to null
        ):
            fail(ConfigError(one_line(error, kind)))
        elif not entry.outcomes:  # otherwise the job has printed its traceback
            raise
    if entry.outcomes:
        failed = [outcome for outcome in entry.outcomes if outcome.failure]
        count = len(entry.outcomes)
        print(f"{count} jobs: {count - len(failed)} done, {len(failed)} failed", *failed, sep="\n  ", file=sys.stderr)
        sys.exit(1 if failed else 0)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
