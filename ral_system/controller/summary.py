"""`summary.json`: the figures that say whether a run worked."""

from __future__ import annotations

import json
from typing import Any

from ral_system.config.schema import RunConfig
from ral_system.controller.run_folder import STAGES, RunFolder
from ral_system.errors import GATE_COUNTERS
from ral_system.observability.jsonl import read_lines, write_atomically
from ral_system.observability.metrics import METRICS_FILE


def write_summary(config: RunConfig, folder: RunFolder) -> None:
    """Write what the complete stages recorded; fields of stages that have not run are null.

    A gate that fails ends the run; its line in the metrics is counted here until a resume goes on before it.
    """
    lines = read_lines(folder.root / METRICS_FILE)
    failures = {name: sum(int(line.get(f"gate/{name}", 0)) for line in lines) for name in GATE_COUNTERS}
    results = {stage: folder.result(stage) or {} for stage in STAGES}
    rl = results["rl"]
    summary: dict[str, Any] = {
        "name": config.name,
        "algorithm": config.algorithm.name,
        "seed": config.seed,
        "rl_steps": rl.get("steps"),
        "held_out_questions": config.evaluation.questions,
        "held_out_accuracy_after_sft": rl.get("held_out_accuracy_before"),
        "held_out_accuracy_after_rl": rl.get("held_out_accuracy"),
        "format_rate_after_rl": rl.get("format_rate"),
        "max_abs_logprob_diff": rl.get("max_abs_logprob_diff"),
        "prompts_verified": rl.get("prompts_verified"),
        "weight_tensors_verified": rl.get("tensors_verified"),
        **(failures if rl or any(failures.values()) else dict.fromkeys(failures)),
        "rollout_tokens_per_s": rl["rollout_tokens"] / rl["rollout_s"] if rl else None,
        "wall_s": {
            stage: {"total": result.get("wall_s"), **result.get("phases_s", {})} for stage, result in results.items()
        },
    }
    write_atomically(folder.summary, json.dumps(summary, indent=2))
