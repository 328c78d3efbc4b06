"""Attention drawn to where the answer is to be seen (EASE, arXiv 2605.30912). A pure function."""

from __future__ import annotations

from torch import Tensor

from ral_system.algorithms.attention_objectives.inputs import AttentionInputs
from ral_system.algorithms.reduction import reduce_rows
from ral_system.config.attention_objective import EvidenceObjectiveConfig


def evidence(inputs: AttentionInputs, settings: EvidenceObjectiveConfig) -> Tensor:
    """L = mean of KL(u_t ‖ tau) over the rows of all responses that count, to be minimised.

    u_t is a row's policy over the n visual keys of its prompt, tau the prompt's target over them: a Gaussian on each
    box and, by `smoothing` alpha, alpha / n everywhere. So L is at most ln(n / alpha). There is no advantage: a
    response counts if its reward reaches `gate`. The gradient at the old policy is not 0.
    """
    found = inputs.evidence
    assert found is not None, "the rows were not compared with evidence"
    return reduce_rows(
        found.divergences,
        inputs.rows & found.counted[:, None],
        reduction="token_mean",
        global_tokens=found.update_rows,
        global_sequences=inputs.update_sequences,
    )
