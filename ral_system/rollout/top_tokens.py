"""The most likely tokens of each position, as a rollout engine reports them."""

from __future__ import annotations

import numpy as np

from ral_system.types import TokenRecord

_SMALLEST = 1e-12
"""Least mass of all other tokens together: what is left of 1 may round to nothing."""


def with_rest(ids_RK: np.ndarray, log_probs_RK: np.ndarray) -> TokenRecord:
    """Return the record of the reported tokens and, last, of all others together."""
    rest_R1 = np.log(np.maximum(1 - np.exp(log_probs_RK.astype(np.float64)).sum(-1, keepdims=True), _SMALLEST))
    return TokenRecord(np.concatenate([log_probs_RK, rest_R1], axis=-1).astype(np.float32), ids_RK.astype(np.int32))
