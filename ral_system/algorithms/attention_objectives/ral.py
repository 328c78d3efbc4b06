"""The attention loss of Reinforced Attention Learning (arXiv 2602.04884, Eq 3). A pure function.

Suffixes: B sequences, R rows (response positions, padded).
"""

from __future__ import annotations

from torch import Tensor

from ral_system.algorithms.attention_objectives.inputs import AttentionInputs
from ral_system.algorithms.reduction import reduce_rows
from ral_system.config.attention_objective import RalObjectiveConfig
from ral_system.config.choices import Reduction


def ral(inputs: AttentionInputs, settings: RalObjectiveConfig) -> Tensor:
    """`attention_loss` of a micro-batch."""
    return attention_loss(
        inputs.divergences,
        inputs.advantages,
        inputs.rows,
        reduction=inputs.reduction,
        global_tokens=inputs.update_rows,
        global_sequences=inputs.update_sequences,
    )


def attention_loss(
    divergence_BR: Tensor,
    advantages_B: Tensor,
    mask_BR: Tensor,
    *,
    reduction: Reduction,
    global_tokens: int,
    global_sequences: int,
) -> Tensor:
    """L_attn = E_t[ A_t · JSD(p_pi^t || p_old^t) ] (Eq 3), to be minimised; A_t is the sequence's group advantage.

    A > 0 pulls a row towards the old policy's attention, A < 0 pushes it away; no clipping, no ratio. The expectation
    is a mean over all rows of the update (`token_mean`) or over sequences of each one's mean (`sequence_mean`), by
    global counts. At p = p_old both value and gradient are exactly 0.
    """
    return reduce_rows(
        advantages_B[:, None] * divergence_BR,
        mask_BR,
        reduction=reduction,
        global_tokens=global_tokens,
        global_sequences=global_sequences,
    )
