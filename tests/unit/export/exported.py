"""Runs that have ended, as what they leave in their folders."""

import shutil
from pathlib import Path
from typing import Any

from ral_system.config.choices import Stage
from ral_system.config.commands import TrainConfig
from ral_system.runs.folder import RunFolder

SUPERVISED = {"steps": 4, "held_out_score": 0.5}
REINFORCED = {"steps": 3, "held_out_questions": 100.0, "held_out_accuracy_before": 0.4, "held_out_accuracy": 0.7}
COMMAND = {
    "command": "ral-train runs_dir=/home/somebody/secret",
    "git_commit": "0123456789abcdef",
    "git_dirty": False,
    "versions": {"ral_system": "0.1.0", "torch": "2.13.0", "numpy": "2.0"},
}


def end_stage(
    root: Path, config: TrainConfig, stage: Stage, start: Path | str | None, model: Path | None = None
) -> Path:
    """Let a stage of the run in `root` end; it began with `start`. Returns its model's folder."""
    folder = RunFolder(root)
    root.mkdir(parents=True, exist_ok=True)
    folder.record(config)
    folder.add_command(COMMAND)
    result: dict[str, Any] = dict(REINFORCED if stage == "rl" else SUPERVISED)
    if start is not None:
        result["start_model"] = str(start)

    def save(to: Path) -> None:
        if model is not None:
            shutil.copytree(model, to, dirs_exist_ok=True)

    folder.complete(stage, result, save)
    return folder.model(stage)
