"""What every command shares: Hydra composes the configuration, mistakes become one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ral_system.config.schema import RunConfig
from ral_system.config.validate import parse_config
from ral_system.errors import ConfigError, RalError


def run_with_config(task: Callable[[RunConfig], None], *, doc: str) -> None:
    """Run `task` with the configuration from the command line. Exit codes: 0 done, 2 wrong input, 1 anything else."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed with a traceback
    signal.signal(signal.SIGTERM, _interrupt)

    def with_container(container: DictConfig) -> None:
        try:
            task(parse_config(plain_container(OmegaConf.to_container(container, resolve=True))))
        except RalError as error:
            fail(error)

    with_container.__doc__ = doc
    try:
        hydra.main(version_base=None, config_path="pkg://conf", config_name="config")(with_container)()
    except (HydraException, OmegaConfBaseException) as error:
        fail(ConfigError(_one_line(error)))
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


def _one_line(error: Exception) -> str:
    text = str(error).split("Config search path")[0]
    if text.startswith("Could not override '"):
        key = text.removeprefix("Could not override '").split("'")[0]
        return f"{key}: unknown key; ral-train --cfg job shows the known ones"
    return " ".join(text.split())


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
