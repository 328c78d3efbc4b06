"""`summary.json`: the figures that say whether a run worked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ral_system.config.choices import STAGES
from ral_system.errors import GATE_COUNTERS, GateError
from ral_system.observability.jsonl import read_objects, write_atomically
from ral_system.observability.timeline import idle_shares, peak_memory
from ral_system.runs.folder import RunFolder


def write_summary(folder: RunFolder, *, name: str, algorithm: str, seed: int, failed: GateError | None = None) -> None:
    """Write what the complete stages recorded; fields of stages that have not run are null.

    `failed` is the gate that ended the run; it is counted until a resumed run gets past it.
    """
    results = {stage: folder.result(stage) or {} for stage in STAGES}
    rl = results["rl"]
    failures = dict.fromkeys(GATE_COUNTERS, 0 if rl or failed else None)
    if failed:
        failures[failed.counter] = 1
    summary: dict[str, Any] = {
        "name": name,
        "algorithm": algorithm,
        "seed": seed,
        "rl_steps": rl.get("steps"),
        "held_out_questions": rl.get("held_out_questions"),
        "held_out_accuracy_after_sft": rl.get("held_out_accuracy_before"),
        "held_out_accuracy_after_rl": rl.get("held_out_accuracy"),
        "format_rate_after_rl": rl.get("format_rate"),
        "attention_contrast": rl.get("contrast"),
        "max_abs_logprob_diff": rl.get("max_abs_logprob_diff"),
        "prompts_verified": rl.get("prompts_verified"),
        "weight_tensors_verified": rl.get("tensors_verified"),
        "verdict_timeouts": rl.get("verdict_timeouts"),
        "verdict_errors": rl.get("verdict_errors"),
        **failures,
        "rollout_tokens_per_s": rl["rollout_tokens"] / rl["rollout_s"] if rl else None,
        "idle_share": idle_shares(folder.root, "rl") if rl else None,
        "peak_gib": peak_memory(folder.root, "rl") if rl else None,
        "wall_s": {
            stage: {"total": result.get("wall_s"), **result.get("phases_s", {})} for stage, result in results.items()
        },
        **_made_with(read_objects(folder.commands)),
    }
    write_atomically(folder.summary, json.dumps(summary, indent=2))


def _made_with(commands: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Versions of the newest command that did part of the run, and all of these commands."""
    newest = commands[-1] if commands else {}
    return {
        **{name: newest.get(name) for name in ("versions", "git_commit", "git_dirty")},
        "commands": [command.get("command") for command in commands],
    }
