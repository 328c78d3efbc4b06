"""The task as Hydra calls it: once in a single run, once per job of a multirun (`-m`), each with its own run folder."""

from __future__ import annotations

import hashlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ral_system.config.commands import CommandConfig
from ral_system.config.known import other_readers, read_by
from ral_system.config.validate import parse_config
from ral_system.errors import ConfigError, RalError
from ral_system.launch.mistakes import explain, fail

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ral_system.launch.hydra_internals import Override

Task = Callable[[Any], float | None]
"""Function that does the work of a command's configuration and returns the value that a sweeper optimises, or None."""

_SUFFIX_CHARS = 120


@dataclass(frozen=True)
class Outcome:
    """Outcome of one job. `failure` is empty for a job that is done."""

    job: str
    failure: str
    value: float | None
    wall_s: float

    def __str__(self) -> str:
        if self.failure:
            return f"{self.job}: failed: {self.failure}"
        value = "" if self.value is None else f"held-out accuracy {self.value:.3f}, "
        return f"{self.job}: done, {value}{self.wall_s:.0f} s"


class HydraTask:
    """Validates the composed configuration and runs the task; picklable, so launchers may run it in other processes.

    A job of a multirun says when it starts and how it ended, and raises what went wrong: the launcher goes on with the
    next job. `outcomes` has the jobs that ran in this process.
    """

    def __init__(self, task: Task, kind: type[CommandConfig], overrides: Sequence[str]) -> None:
        self._task, self._kind, self._overrides = task, kind, tuple(overrides)
        self.called = False
        self.outcomes: list[Outcome] = []

    def __call__(self, container: DictConfig) -> float | None:
        """Run what `container` configures and return the task's value."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        self.called = True
        hydra = HydraConfig.get()
        if hydra.mode is RunMode.MULTIRUN:
            return self._run_job(container, hydra)
        try:
            return self._run(container)
        except RalError as error:  # here, since Hydra prints its own line about errors that reach it
            fail(error)

    def _run(self, container: DictConfig) -> float | None:
        try:
            return self._task(parse_config(plain_container(container, self._kind), self._kind))
        except Exception as error:
            if (explained := explain(error, self._kind)) is None:
                raise
            raise explained from error

    def _run_job(self, container: DictConfig, hydra: Any) -> float | None:
        swept, total = self._swept(hydra)
        values = (f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in swept)
        job = " ".join([f"job {hydra.job.num + 1}" + (f" of {total}:" if total else ":"), *values])
        began = time.monotonic()
        try:
            container.name = job_name(container, swept)
            _say(f"{job} → {Path(container.runs_dir) / container.name}")
            value = self._run(container)
        except Exception as error:
            if not isinstance(error, RalError):
                traceback.print_exc()
            lines = error.lines if isinstance(error, RalError) else str(error).split()
            failure = ("; " if isinstance(error, RalError) else " ").join(lines) or type(error).__name__
            self._ended(Outcome(job, failure, None, time.monotonic() - began))
            raise
        self._ended(Outcome(job, "", value, time.monotonic() - began))
        return value

    def _ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        _say(str(outcome))

    def _swept(self, hydra: Any) -> tuple[list[Override], int | None]:
        """Return the overrides that differ between jobs, sorted by key, and the number of jobs if known.

        What the command line gives a single value is fixed, whatever sweeper chooses the rest.
        """
        from ral_system.launch.hydra_internals import job_count, parsed

        basic = hydra.sweeper._target_.endswith(".BasicSweeper")
        params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()] if basic else []
        given = {o.get_key_element(): o for o in parsed([*params, *self._overrides], in_task=True)}
        fixed = {key for key, override in given.items() if not override.is_sweep_override()}
        now = parsed(hydra.overrides.task, in_task=True)
        swept = [o for o in now if o.get_key_element() not in fixed]
        asked = [o for o in given.values() if not o.is_hydra_override()]
        total = job_count(asked) if basic else hydra.sweeper.get("n_trials")
        return sorted(swept, key=lambda o: o.get_key_element()), total


def plain_container(container: DictConfig, kind: type[CommandConfig]) -> dict[str, Any]:
    """Return the composed values that the command reads. Others may refer to keys that nobody has set.

    Raises ConfigError for an experiment whose keys are below `experiment`, where nothing reads them.
    """
    from omegaconf import OmegaConf

    if unread := container.get("experiment"):
        raise ConfigError(_misplaced(unread))
    found: dict[str, Any] = {}
    for name in map(str, container):
        if name not in ("hydra", "experiment") and not other_readers(name, kind):
            value = container[name]
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            found[name] = value
    return read_by(kind, found)


def _misplaced(unread: Any) -> str:
    from hydra.core.hydra_config import HydraConfig

    overrides, keys = HydraConfig.get().overrides.task, ", ".join(map(str, unread))
    chosen = next(
        (given.lstrip("+") for given in overrides if given.lstrip("+").startswith("experiment=")), "experiment"
    )
    return (
        f"{chosen}: its keys ({keys}) are below the key experiment, where nothing reads them; make "
        '"# @package _global_" the first line of the file'
    )


def job_name(container: DictConfig, swept: Sequence[Override]) -> str:
    """Add to the run's name the swept values that it does not contain yet; equal values give equal names.

    Example: `smoke` with algorithm=ral,grpo and seed=0,1 gives `smoke_algorithm-ral_seed-0` and three others;
    `${algorithm.name}_${seed}` stays unchanged.
    """
    from omegaconf import OmegaConf

    raw: Any = OmegaConf.to_container(container, resolve=False)
    used = re.findall(r"\$\{([^${}]+)\}", str(raw["name"]))
    if any(key.startswith("hydra:") for key in used):  # such as the job's number
        return str(container.name)
    words = []
    for override in swept:
        key = override.key_or_group.replace("/", ".")
        if key != "name" and not any(f"{name}.".startswith(f"{key}.") for name in used):
            words.append(_word(override.get_key_element().lstrip("+~"), override.get_value_element_as_str()))
    suffix = "".join(f"_{word}" for word in words)
    if len(suffix) > _SUFFIX_CHARS:
        suffix = f"{suffix[:_SUFFIX_CHARS]}-{_hash(suffix)}"
    return f"{container.name}{suffix}"


def _word(key: str, value: str) -> str:
    """Format `key-value` with the characters that a run's name may have; a hash where that loses part of the value."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", value)
    changed = "" if safe == value else f"-{_hash(value)}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", key) + f"-{safe}{changed}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
