"""The most likely tokens that an engine reports, against the whole distribution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ral_system.types import Completion


def check_top_tokens(completion: Completion, log_softmax_RV: Tensor, tolerance: float = 1e-5) -> None:
    """The largest entries, the sampled token in the last one's place where it is none of them; all adds up to 1."""
    if completion.top is None:
        return
    record = completion.top
    assert record.ids is not None
    count = record.ids.shape[1]
    assert record.log_probs.shape == (len(completion.token_ids), count + 1)
    ids = torch.from_numpy(record.ids).long()
    exact = log_softmax_RV.gather(-1, ids)
    assert np.abs(exact.numpy() - record.log_probs[:, :-1]).max() <= tolerance
    assert np.abs(np.exp(record.log_probs.astype(np.float64)).sum(-1) - 1).max() <= 1e-5
    for row, token, of_row in zip(ids.tolist(), completion.token_ids, log_softmax_RV, strict=True):
        best = of_row.topk(count).values
        assert token in row and len(set(row)) == count
        others = [of_row[i].item() for i in row if i != token]
        assert all(value >= best[-1].item() - tolerance for value in others)
        assert of_row[token] >= best[-1] - tolerance or row[-1] == token
