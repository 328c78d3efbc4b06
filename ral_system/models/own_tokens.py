"""The head on a rank that has a run of a micro-batch's tokens. Suffixes: N response tokens, C values of each."""

from __future__ import annotations

from itertools import accumulate

import torch

from ral_system.algorithms.token_read import TokenValues
from ral_system.attention.packing import Packing
from ral_system.attention.sequence import SequenceGroup


class OwnTokens:
    """The response tokens that a rank's tokens predict, among those of the micro-batch."""

    def __init__(self, packing: Packing, sequence: SequenceGroup) -> None:
        ends = torch.tensor(list(accumulate(sequence.lengths(packing.tokens))))
        rank_N = torch.bucketize(packing.predicting, ends, right=True)
        self._sequence, self._rank = sequence, rank_N
        self.chosen = rank_N == sequence.rank
        """bool [N], on CPU."""
        self.predicting = packing.predicting[self.chosen] - sequence.own(packing.tokens).start
        """int64, positions among the rank's tokens."""

    def gather(self, values: TokenValues) -> TokenValues:
        """Values of all N tokens, from those of each rank's own."""
        assert values.top_ids is None and values.whole is None, "only frozen models read these"
        single = [v for v in (values.log_probs, values.entropy, values.top1, values.divergence) if v is not None]
        columns = [*(v[:, None].to(values.log_probs) for v in single), *values.kept.values()]
        counts = self._rank.bincount(minlength=self._sequence.size).tolist()
        by_rank_NC = self._sequence.gather(torch.cat(columns, dim=1), counts)
        all_NC = by_rank_NC[self._rank.argsort(stable=True).argsort().to(by_rank_NC.device)]
        log_probs, entropy, top1, *others = all_NC.split([column.shape[1] for column in columns], dim=1)
        divergence = None if values.divergence is None else others.pop(0)[:, 0]
        kept = dict(zip(values.kept, others, strict=True))
        return TokenValues(log_probs[:, 0], entropy[:, 0], top1[:, 0] > 0.5, kept, divergence)
