"""Checks of what the rounding of bfloat16 allows, for `combinations`."""

from __future__ import annotations

from collections.abc import Iterator

from ral_system.config.algorithm import AlgorithmConfig
from ral_system.config.learner import LearnerConfig
from ral_system.config.rollout import RolloutConfig


def gate_fits_the_dtypes(rollout: RolloutConfig, learner: LearnerConfig) -> Iterator[str]:
    """Check that the log-prob gate allows for the rounding of bfloat16."""
    gate = rollout.log_prob_gate
    if "bfloat16" in (rollout.dtype, learner.dtype) and gate.token < 0.01:
        yield (
            f"rollout.log_prob_gate.token={gate.token:g} cannot hold with rollout.dtype={rollout.dtype} and "
            f"learner.dtype={learner.dtype}; set both to float32, or use "
            "rollout.log_prob_gate={token: 2, outliers: 0.001, mean: 0.1, p999: 1}"
        )


def gate_allows_outliers(rollout: RolloutConfig, learner: LearnerConfig) -> Iterator[str]:
    """Warn about a bfloat16 run whose gate allows no outliers."""
    gate = rollout.log_prob_gate
    if "bfloat16" in (rollout.dtype, learner.dtype) and gate.outliers == 0:
        yield (
            "rollout.log_prob_gate.outliers=0 ends a bfloat16 run at its first token beyond "
            f"rollout.log_prob_gate.token={gate.token:g}; 0.001 leaves such tokens out of the loss instead"
        )


def held_shares_exceed_rounding(algorithm: AlgorithmConfig, learner: LearnerConfig) -> Iterator[str]:
    """Warn about RAL's share of the gradient, which bfloat16 mostly does not hold."""
    a = algorithm.attention
    dtypes = {"learner.dtype": learner.dtype, "algorithm.attention.record_dtype": a.record_dtype}
    coarse = [name for name, dtype in dtypes.items() if dtype == "bfloat16"]
    held = a.weight > 0 and a.objective.name == "ral" and a.anchor == "old" and a.target_gradient_share is not None
    if held and coarse:
        yield (
            f"algorithm.attention.target_gradient_share={a.target_gradient_share:g} with "
            f"{' and '.join(f'{name}=bfloat16' for name in coarse)}: with algorithm.attention.anchor=old most of RAL's "
            "gradients are within bfloat16's rounding errors and are not scaled, so the share stays near 0; set the "
            "anchor to reference or ema, choose another objective (algorithm=attention_credit), or set "
            f"{' and '.join(f'{name}=float32' for name in coarse)}"
        )
