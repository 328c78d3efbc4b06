"""`ral-train` on the workload, and the seconds of its steps from metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.peers.processes import run_module
from bench.peers.questions import Exported
from bench.peers.reward import SIGNAL, register
from bench.peers.workloads import Shape, Workload

ENGINES = 2
"""Rollout engines of cluster=ray: as many as learner ranks, since each has a thread and they take turns."""


def overrides(workload: Workload, shape: Shape, cluster: str, threads: int) -> list[str]:
    """Return what decides about the work, as `ral-train` takes it."""
    engines = [f"rollout.workers={ENGINES}", f"cluster.cpus_per_rollout={0.5 / ENGINES}"] if cluster == "ray" else []
    place = [f"cluster={cluster}", f"cluster.threads_per_process={threads}", *engines]
    return [*workload.overrides, *shape.our_overrides(), *place]


def run_ours(
    workload: Workload, shape: Shape, exported: Exported, *, cluster: str, threads: int, model: Path, folder: Path
) -> list[dict[str, float]]:
    """Train in a run folder inside `folder`; return the seconds of every batch, the first one included."""
    lines = train(overrides(workload, shape, cluster, threads), f"ral-train, cluster={cluster}", model, folder)
    return [{**batch, "prompt_tokens": exported.prompt_tokens} for batch in batches(lines)]


def train(overrides: Sequence[str], what: str, model: Path, folder: Path) -> list[dict[str, Any]]:
    """Run the stage rl of `folder`/run with nothing but steps; return the lines of its metrics.jsonl.

    Raises PeerError, which names `what` was run.
    """
    arguments = [
        *overrides,
        "stages=[rl]",
        f"start_model={model}",
        f"runs_dir={folder}",
        "name=run",
        "reward.correctness=0",
        "reward.format=0",
        f"+reward.signals.{SIGNAL}=1",
        "rollout.log_prob_gate.token=1e-3",
        "evaluation.every=0",
        "evaluation.questions=2",
        "checkpoint.every=1000000",
        "logging.report_every=1000000",
        "logging.wandb=disabled",
    ]
    run_module(
        what,
        "ral_system.launch.train",
        arguments,
        path=[register(folder / "signal")],
        log=folder / "output.log",
        settings={},
    )
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def batches(metrics: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Seconds of every RL step and its phases. A step lasts from the record of the one before it to its own."""
    found, ended = [], 0.0
    for record in metrics:
        if "time/update_s" in record:  # the evaluations before and after have records of their own
            found.append(
                {
                    "seconds": record["time_s"] - ended,
                    "data_s": record["time/data_s"],
                    "rollout_s": record["time/rollout_s"],
                    "score_s": record["time/score_s"] + record.get("time/reward_s", 0.0),
                    "update_s": record["time/update_s"],
                    "response_tokens": record["rollout/length_mean"],
                }
            )
        ended = record["time_s"]
    return found
