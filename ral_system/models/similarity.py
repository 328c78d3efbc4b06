"""How alike the tokens of responses are to what the policy sees, in its own last hidden states."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ral_system.attention.packing import Packing
from ral_system.attention.provenance import KeyProvenance
from ral_system.attention.selection import shared_keys
from ral_system.attention.sequence import SequenceGroup, total


@torch.no_grad()
def visual_similarity(
    hidden_TE: Tensor, keys: KeyProvenance, packing: Packing, sequence: SequenceGroup | None
) -> Tensor:
    """cos(h_t, m) of every response token t, in order: float32 [N]. 0 for a prompt without pictures.

    h are the last hidden states, at the token that is read (not the one that predicts it), m their mean over the visual
    tokens of the group's prompt. With `sequence`, `hidden` holds this rank's tokens, and the result is all ranks'.
    """
    own = slice(0, packing.tokens) if sequence is None else sequence.own(packing.tokens)
    visual_N = shared_keys("visual", keys)
    sums_GE = hidden_TE.new_zeros((len(packing.groups), hidden_TE.shape[1]), dtype=torch.float32)
    for group, (start, end) in enumerate(pairwise((*packing.starts, packing.tokens))):
        mine_N = visual_N[(visual_N >= max(start, own.start)) & (visual_N < min(end, own.stop))]
        sums_GE[group] = hidden_TE[mine_N - own.start].float().sum(0)
    sums_GE = total(sums_GE, sequence)  # cosines do not depend on how many were added up
    at_N = packing.responding.to(hidden_TE.device)
    group_N = torch.bucketize(at_N, torch.tensor(packing.starts, device=at_N.device), right=True) - 1
    is_mine_N = (at_N >= own.start) & (at_N < own.stop)
    found_N = sums_GE.new_zeros(len(at_N))
    found_N[is_mine_N] = cosine_similarity(
        hidden_TE[at_N[is_mine_N] - own.start].float(), sums_GE[group_N[is_mine_N]], dim=-1
    )
    return total(found_N, sequence)
