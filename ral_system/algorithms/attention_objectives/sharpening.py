"""A control: rows sharpened or flattened by the sign of the advantage, wherever they look. A pure function."""

from __future__ import annotations

from torch import Tensor

from ral_system.algorithms.attention_objectives.inputs import AttentionInputs
from ral_system.algorithms.reduction import reduce_rows
from ral_system.config.attention_objective import SharpeningObjectiveConfig


def sharpening(inputs: AttentionInputs, settings: SharpeningObjectiveConfig) -> Tensor:
    """L = E_t[ |A| · KL(q_t ‖ p_t) ], to be minimised.

    q_t is the anchor's row to the power 1/tau where A > 0 and to the power tau where A < 0, normalised. KL is the
    cross-entropy without the constant entropy of q, so the gradient in a row's logits is |A| (p - q), which is not 0 at
    the old policy. Responses with A = 0 have no part. |A| stands outside, since a cross-entropy times A < 0 would have
    no lower bound. For tau near 1 it is an advantage-weighted entropy of attention: it says how sharply to look, and
    nothing of where to.
    """
    assert inputs.sharpened is not None, "the rows were not compared with sharpened ones"
    return reduce_rows(
        inputs.advantages.abs()[:, None] * inputs.sharpened,
        inputs.rows,
        reduction=inputs.reduction,
        global_tokens=inputs.update_rows,
        global_sequences=inputs.update_sequences,
    )
