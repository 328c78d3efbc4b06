"""Weights & Biases as a second place for metrics: never needed, never in the way of the run."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ral_system.config.choices import Stage
from ral_system.config.logging import LoggingConfig, WandbChoice, WandbMode, WandbRecording

_log = logging.getLogger(__name__)

_START_TIMEOUT_S = 20.0
_FINISH_TIMEOUT_S = 60.0
_RUN_ID_FILE = "wandb-run-id"
_BEST_IS_HIGHEST = ("eval/accuracy", "held_out/token_accuracy")
"""Metrics whose summary has the maximum beside the last value."""


@dataclass(frozen=True, slots=True)
class Mode:
    """What happens to metrics on this machine. Example: `Mode("offline", "WANDB_MODE=offline")`"""

    name: WandbMode
    reason: str
    remedy: str = ""
    problem: bool = False
    """Whether something that was asked for, or set up, does not work."""


def resolve_mode(asked: WandbChoice) -> Mode:
    """Resolve the W&B mode; if settings disagree, the most private wins."""
    if asked == "disabled":
        return Mode("disabled", "logging.wandb=disabled")
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return Mode("disabled", f"WANDB_DISABLED={os.environ['WANDB_DISABLED']}")
    wandb = _wandb()
    try:
        settings = wandb.setup().settings
    except ValueError as error:
        reason = f"its settings cannot be read ({_reason(error)})"
        return Mode("disabled", reason, "correct the WANDB_* variables", problem=True)
    theirs = settings.mode if "mode" in settings.model_fields_set else None
    source = f"WANDB_MODE={theirs}" if "WANDB_MODE" in os.environ else f"mode={theirs} in W&B's settings file"
    if theirs == "disabled":
        return Mode("disabled", source)
    if theirs in ("offline", "dryrun"):
        return Mode("offline", source)
    if asked == "offline":
        return Mode("offline", "logging.wandb=offline")
    try:
        if wandb.login(prompt=False, verify=False):
            return Mode("online", f"login found for {settings.base_url}")
    except wandb.errors.AuthenticationError as error:
        return Mode("offline", f"the login cannot be used ({_reason(error)})", "wandb login --relogin", problem=True)
    expected = asked == "online" or theirs is not None
    return Mode("offline", f"no login for {settings.base_url}", "wandb login", problem=expected)


class WandbSink:
    """One W&B run per run folder; a resumed run continues it. After any failure it warns once and does nothing more."""

    def __init__(self, folder: Path, config: LoggingConfig, run_name: str, resolved_config: Mapping[str, Any]) -> None:
        self._run: Any = None
        self._defined: set[str] = set()
        self._offline_files: str | None = None
        try:
            mode = resolve_mode(config.wandb)
            if mode.problem:
                _log.warning("W&B is %s: %s; remedy: %s", mode.name, mode.reason, mode.remedy)
            if mode.name != "disabled":
                self._run = _start_anyhow(folder, mode.name, config.wandb_project, run_name, resolved_config)
        except Exception as error:
            _give_up("did not start", error)
            return
        if self._run is not None and self._run.offline:
            self._offline_files = _offline_files(folder, self._run)
        elif self._run is not None:
            print(f"W&B: {self._run.url}", file=sys.stderr)

    def write(self, stage: Stage, step: int, metrics: Mapping[str, float]) -> None:
        """Log against the stage's own step axis, rl as `reward/total`, earlier stages as `sft/supervised/loss`."""
        if self._run is None:
            return
        row = {_chart(stage, name): value for name, value in metrics.items() if math.isfinite(value)}
        axis = f"{stage}/step"
        try:
            self._define(axis, row)
            self._run.log({**row, axis: step})
        except Exception as error:
            self._run = None
            _give_up("stopped", error)

    def close(self, *, failed: bool = False) -> None:
        """Flush and finish, with a bound on the time, and print how to upload what was logged offline. Idempotent."""
        run, self._run = self._run, None
        if run is not None:
            try:
                run.finish(exit_code=1 if failed else 0)
            except Exception as error:
                _give_up("did not finish", error)
        if self._offline_files is not None:
            print(f"W&B: logged offline; upload with: wandb sync {self._offline_files}", file=sys.stderr)
            self._offline_files = None

    def _define(self, axis: str, row: Mapping[str, float]) -> None:
        if axis not in self._defined:
            self._run.define_metric(axis, hidden=True)
        for name in row:
            if name not in self._defined:
                summary = "max,last" if name.endswith(_BEST_IS_HIGHEST) else None
                self._run.define_metric(name, step_metric=axis, summary=summary)
        self._defined |= {axis, *row}


def _chart(stage: Stage, metric: str) -> str:
    """W&B makes a section of the first part of a name: rl has one per family of metrics, the others one each."""
    return metric if stage == "rl" else f"{stage}/{metric}"


def _wandb() -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")  # read when the package is set up, before any other setting
    import wandb

    return wandb


def _start_anyhow(
    folder: Path, mode: WandbRecording, project: str, run_name: str, resolved_config: Mapping[str, Any]
) -> Any:
    """A run in `mode`, or offline when W&B cannot be reached."""
    if mode == "online":
        try:
            return _start(folder, "online", project, run_name, resolved_config)
        except Exception as error:
            _log.warning("W&B cannot be reached, so this run logs offline (%s)", _reason(error))
            with contextlib.suppress(SystemExit):  # raised when W&B's process has ended badly
                _wandb().teardown()  # else it holds on to the id of the run that failed to start
    return _start(folder, "offline", project, run_name, resolved_config)


def _start(folder: Path, mode: WandbRecording, project: str, run_name: str, resolved_config: Mapping[str, Any]) -> Any:
    wandb = _wandb()
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {
        "project": project,
        "run_name": run_name,
        "run_id": _run_id(folder),
        "root_dir": str(folder.resolve()),
        "resume": "allow",  # also offline: a file that says so is appended to its run by `wandb sync`
        "console": "off",
        "quiet": True,
        "silent": True,
        "save_code": False,
        "disable_git": True,
        "init_timeout": _START_TIMEOUT_S,
        "login_timeout": _START_TIMEOUT_S,
        "finish_timeout": _FINISH_TIMEOUT_S,
    }
    theirs = wandb.setup().settings.model_fields_set  # from WANDB_* and W&B's settings files
    ours = {name: value for name, value in defaults.items() if name not in theirs}
    return wandb.init(config=dict(resolved_config), mode=mode, settings=wandb.Settings(**ours), reinit="create_new")


def _run_id(folder: Path) -> str:
    path = folder / _RUN_ID_FILE
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _offline_files(folder: Path, run: Any) -> str:
    """Return the offline files' absolute path or glob, shell-quoted."""
    home = Path(run.settings.sync_dir).parent
    if home.parent == folder.resolve():
        return shlex.quote(str(home))
    return f"{shlex.quote(str(home))}/offline-run-*-{run.id}*"  # WANDB_DIR: other runs are there too


def _give_up(what: str, error: Exception) -> None:
    _log.warning("W&B %s and is off for the rest of this run; metrics.jsonl has everything (%s)", what, _reason(error))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
