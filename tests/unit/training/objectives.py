"""A made-up micro-batch, for the tests of objectives."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ral_system.algorithms.token_read import TokenRead, TokenValues, dense_values
from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.attention.packing import PackedGroup, Packing
from ral_system.attention.policy import attention_policy
from ral_system.attention.provenance import concatenate, key_provenance
from ral_system.attention.read import AttentionRead
from ral_system.attention.record import record_attention
from ral_system.batches.collate import TensorBatch
from ral_system.config.algorithm import AlgorithmConfig
from ral_system.models.policy import PolicyOutput
from ral_system.training.objective import Objective, policy_objective
from ral_system.training.scores import UpdateScores
from ral_system.training.token_reads import token_read
from ral_system.types import Counts, Prompt, Sample, SampleScores, Scores

PROMPTS, RESPONSES = (3, 5, 2), (4, 1, 3)
ADVANTAGES = (1.5, -0.8, -0.4)
COUNTS = Counts(
    tokens=20, sequences=6, attention_rows=20, evidence_rows=20
)  # of the update; here are 8 tokens, 3 sequences
READ = AttentionRead()
"""What the made-up attention is a reading of."""


class Case:
    """A micro-batch of three sequences with random log-probs and attention."""

    def __init__(self, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.samples = tuple(
            Sample(
                f"s{i}",
                Prompt(f"s{i}", "", "", "", (), tuple(range(p))),
                tuple(range(r)),
                tuple((-torch.rand(r, generator=g)).tolist()),
                a,
            )
            for i, (p, r, a) in enumerate(zip(PROMPTS, RESPONSES, ADVANTAGES, strict=True))
        )
        self.mask = torch.arange(4)[None] < torch.tensor(RESPONSES)[:, None]
        lengths = tuple(s.length for s in self.samples)
        self.batch = TensorBatch(
            input_ids=torch.zeros(sum(lengths), dtype=torch.int64),
            packing=Packing(tuple(PackedGroup(p, (r,)) for p, r in zip(PROMPTS, RESPONSES, strict=True))),
            features={},
            occurrences=(),
            position_ids=torch.zeros(3, 1, sum(lengths), dtype=torch.int64),
            layouts=((), (), ()),
            response_ids=torch.zeros(3, 4, dtype=torch.int64),
            response_mask=self.mask,
            advantages=torch.tensor(ADVANTAGES),
            keys=concatenate(
                [key_provenance(torch.zeros(n).bool(), (), system_tokens=0, prompt_tokens=0) for n in lengths]
            ),
            rows={"generated": tuple((torch.arange(p, n),) for p, n in zip(PROMPTS, lengths, strict=True))},
        )
        self.log_probs = torch.where(self.mask, -3 * torch.rand(3, 4, generator=g), 0.0)
        logits = torch.randn(sum(RESPONSES), 7, generator=torch.Generator().manual_seed(seed + 1))
        self.log_softmax = (2 * logits).log_softmax(-1)
        self.targets = torch.cat([torch.arange(r) for r in RESPONSES])
        self.entropy = torch.where(self.mask, torch.rand(3, 4, generator=g), 0.0)
        self.heads = [  # query [T, 4, 5] and key [T, 2, 5] of each sequence
            (torch.randn(s.length, 4, 5, generator=g), torch.randn(s.length, 2, 5, generator=g)) for s in self.samples
        ]
        self.behaviour, self.reference = self.scores(g), self.scores(g)

    def scores(self, g: torch.Generator) -> Scores:
        found = {}
        for sample, p in zip(self.samples, PROMPTS, strict=True):
            query, key = (torch.randn(sample.length, n, 5, generator=g) for n in (4, 2))
            policy = attention_policy(query, key, torch.arange(p, sample.length), scale=0.7)
            record = record_attention([policy], version=0, tokens=sample.length, top_k=None, dtype=torch.float32)
            statistics = {"visual_mass": torch.rand(len(policy), generator=g).numpy()}
            log_probs = -3 * np.random.default_rng(p).random(len(sample.response_token_ids), dtype=np.float32)
            found[sample.id] = SampleScores(log_probs, (record,), statistics)
        return found

    def values(self, read: TokenRead, log_softmax: Tensor | None = None) -> TokenValues:
        """Read the case's distributions, or others."""
        return dense_values(self.log_softmax if log_softmax is None else log_softmax, self.targets, read)

    def output(
        self, log_probs: Tensor | None = None, heads: Any = None, values: TokenValues | None = None
    ) -> PolicyOutput:
        attention = tuple(
            GroupAttention.alone((LayerAttention(q[p:], k, 0.7),), torch.arange(p, len(q)))
            for (q, k), p in zip(heads or self.heads, PROMPTS, strict=True)
        )
        return PolicyOutput(
            self.log_probs if log_probs is None else log_probs,
            self.entropy,
            torch.zeros_like(self.mask),
            {READ: attention},
            values or self.values(TokenRead()),
        )

    def tokens(self) -> list[tuple[int, int]]:
        return [(b, t) for b, r in enumerate(RESPONSES) for t in range(r)]


def slow_divergence(p: list[float], q: list[float]) -> float:
    found = 0.0
    for a, b in zip(p, q, strict=True):
        found += 0.5 * a * math.log(2 * a / (a + b)) if a else 0.0
        found += 0.5 * b * math.log(2 * b / (a + b)) if b else 0.0
    return found


def objective(
    case: Case,
    algorithm: AlgorithmConfig,
    output: PolicyOutput | None = None,
    batch: TensorBatch | None = None,
    reference: Scores | None = None,
    teaching: Scores | None = None,
    largest_gap: float = math.inf,
) -> Objective:
    """The case's share of an update with 20 attention rows."""
    if output is None:
        read = token_read(case.samples, teaching or {}, algorithm, case.log_softmax.shape[1])
        output = case.output(values=case.values(read))
    return policy_objective(
        output,
        output.attention[READ],
        batch or case.batch,
        case.samples,
        COUNTS,
        UpdateScores(case.behaviour, reference, case.behaviour, teaching or {}),
        algorithm,
        largest_gap=largest_gap,
    )
