"""Weights & Biases as a second place for metrics: never needed, never in the way of the run."""

from __future__ import annotations

import logging
import math
import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from ral_system.config.schema import STAGES, LoggingConfig, Stage

_log = logging.getLogger(__name__)

_START_TIMEOUT_S = 20.0
_FINISH_TIMEOUT_S = 60.0
_RUN_ID_FILE = "wandb-run-id"


class WandbSink:
    """One W&B run per run folder; a resumed run continues it. After any failure it warns once and does nothing more."""

    def __init__(self, folder: Path, config: LoggingConfig, run_name: str, resolved_config: Mapping[str, Any]) -> None:
        self._run: Any = None
        mode = resolve_mode(config.wandb)
        if mode == "online":
            try:
                self._run = _start(folder, "online", config.wandb_project, run_name, resolved_config)
                return
            except Exception as error:
                _log.warning("W&B cannot be reached; this run logs offline, `wandb sync` it later (%s)", _reason(error))
        if mode != "disabled":
            try:
                self._run = _start(folder, "offline", config.wandb_project, run_name, resolved_config)
            except Exception as error:
                _give_up("did not start", error)

    def write(self, stage: Stage, step: int, metrics: Mapping[str, float]) -> None:
        """Log under `<stage>/<metric>`, against that stage's own step axis."""
        if self._run is None:
            return
        row = {f"{stage}/{name}": value for name, value in metrics.items() if math.isfinite(value)}
        try:
            self._run.log({**row, f"{stage}/step": step})
        except Exception as error:
            self._run = None
            _give_up("stopped", error)

    def close(self) -> None:
        """Flush and finish; bounded in time. Idempotent."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish()
        except Exception as error:
            _give_up("did not finish", error)


def resolve_mode(mode: Literal["auto", "online", "offline", "disabled"]) -> Literal["online", "offline", "disabled"]:
    """`auto` is online when this machine has a W&B login (WANDB_API_KEY or netrc), offline otherwise."""
    if mode != "auto":
        return mode
    return "online" if os.environ.get("WANDB_API_KEY") or _has_netrc_login() else "offline"


def _has_netrc_login() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    named = os.environ.get("NETRC")
    candidates = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for path in candidates:
        try:
            if netrc.netrc(str(path)).authenticators(host) is not None:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _start(
    folder: Path, mode: Literal["online", "offline"], project: str, run_name: str, resolved_config: Mapping[str, Any]
) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")  # the login check prints before it sees any settings
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    run: Any = wandb.init(
        project=project,
        name=run_name,
        id=_run_id(folder, mode),
        resume="allow" if mode == "online" else None,
        dir=str(folder),
        mode=mode,
        config=dict(resolved_config),
        settings=wandb.Settings(
            console="off",
            quiet=True,
            silent=True,
            save_code=False,
            disable_git=True,
            init_timeout=_START_TIMEOUT_S,
            login_timeout=_START_TIMEOUT_S,
            finish_timeout=_FINISH_TIMEOUT_S,
        ),
    )
    for stage in STAGES:
        run.define_metric(f"{stage}/step", hidden=True)
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return run


def _run_id(folder: Path, mode: Literal["online", "offline"]) -> str:
    """One identity per folder and mode: W&B holds on to the id of an online run that it failed to start."""
    path = folder / _RUN_ID_FILE
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    identity = path.read_text(encoding="utf-8").strip()
    return identity if mode == "online" else f"{identity}-offline"


def _give_up(what: str, error: Exception) -> None:
    _log.warning("W&B %s and is off for the rest of this run; metrics.jsonl has everything (%s)", what, _reason(error))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
