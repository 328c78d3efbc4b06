"""Running figures of the RL stage, for summary.json; they are kept in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping


def add_to_totals(totals: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures after a step, from those before it and the step's metrics."""
    return {
        "verdict_timeouts": totals.get("verdict_timeouts", 0.0) + metrics["reward/timeouts"],
        "verdict_errors": totals.get("verdict_errors", 0.0) + metrics["reward/errors"],
        "max_abs_logprob_diff": max(totals.get("max_abs_logprob_diff", 0.0), metrics["gate/log_prob_diff_max"]),
        "prompts_verified": totals.get("prompts_verified", 0.0) + metrics["gate/prompts_verified"],
        "tensors_verified": totals.get("tensors_verified", 0.0) + metrics["gate/tensors_verified"],
        "contrast_sum": totals.get("contrast_sum", 0.0) + metrics.get("attention/contrast", 0.0),
        "contrast_steps": totals.get("contrast_steps", 0.0) + ("attention/contrast" in metrics),
        "rollout_tokens": totals.get("rollout_tokens", 0.0) + metrics["rollout/tokens"],
        "rollout_s": totals.get("rollout_s", 0.0) + metrics.get("ahead/rollout_s", metrics.get("time/rollout_s", 0.0)),
    }


def mean_contrast(totals: Mapping[str, float]) -> float | None:
    """Mean of `attention/contrast` over the steps that have it; None without one."""
    steps = totals.get("contrast_steps", 0.0)
    return totals["contrast_sum"] / steps if steps else None


def said_of_contrast(metrics: Mapping[str, float | None]) -> list[str]:
    """A line on `attention/contrast`; none where it is not known."""
    contrast = metrics.get("attention/contrast")
    if contrast is None:
        return []
    return [f"contrast of where right and wrong responses look: {contrast:.2f} (near 1 they look alike)"]
