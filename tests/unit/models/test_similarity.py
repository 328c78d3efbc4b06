"""How alike tokens are to pictures: as transformers' own hidden states say, in groups and over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ral_system.algorithms.token_read import TokenRead
from ral_system.attention.packing import PackedGroup, Packing
from ral_system.attention.provenance import KeyProvenance, concatenate, key_provenance
from ral_system.attention.sequence import SequenceGroup
from ral_system.batches.collate import Collator
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.models.similarity import visual_similarity
from ral_system.training.shards import Shards
from ral_system.types import Layout, Prompt, Sample, View
from tests.unit.eager import media_inputs, token_types
from tests.unit.training.thread_ranks import together

READ = TokenRead(visual_similarity=True)


def test_it_is_that_of_each_sequence_alone(tiny_model: Path, media: MediaStore, rl_samples: list[Sample]) -> None:
    text = Prompt("text", "", "?", "", (), rl_samples[0].response_token_ids[:4])
    samples = [
        replace(s, id=f"{prompt.id}#{n}", prompt=prompt, response_token_ids=s.response_token_ids[n:])
        for s, prompt in zip(rl_samples[:3], (rl_samples[0].prompt, text, rl_samples[2].prompt), strict=True)
        for n in range(3)
    ]
    model, family = load_model(tiny_model, dtype="float32"), load_family(tiny_model)
    policy, collate = PolicyModel(model, family, temperature=0.7), Collator(family, media)
    output = policy(collate(tuple(samples)), (), READ)
    found = output.visual_similarity
    assert found is not None and not found.requires_grad and output.log_probs.requires_grad
    for row, sample in zip(found, samples, strict=True):
        batch, length = collate((sample,)), len(sample.response_token_ids)
        assert not row[length:].any()
        if not sample.prompt.media:
            assert not row.any()
            continue
        with torch.no_grad():
            inputs = media_inputs(batch)
            whole = model(input_ids=batch.input_ids[None], **inputs, output_hidden_states=True).hidden_states[-1][0]
        mean = whole[token_types(batch) > 0].mean(0)
        expected = cosine_similarity(whole[-length:], mean[None], dim=-1)
        torch.testing.assert_close(row[:length], expected, atol=2e-6, rtol=0)
        assert expected.std() > 1e-3
    assert policy(collate(tuple(samples)), ()).visual_similarity is None


@dataclass(frozen=True)
class ThreadSequence(SequenceGroup):
    """A rank that is a thread."""

    shards: Shards

    def exchange(self, x: Tensor, received: Sequence[int], sent: Sequence[int]) -> Tensor:
        raise AssertionError("not asked for")

    def total(self, x: Tensor) -> Tensor:
        return self.shards.sum(x.clone())


def keys_of(group: PackedGroup, visual: slice, columns: int) -> KeyProvenance:
    marked = torch.zeros(group.tokens, dtype=torch.bool)
    marked[visual] = True
    layouts = [Layout("image", (View(1, columns),))] if columns else []
    return key_provenance(marked, layouts, system_tokens=0, prompt_tokens=group.prompt, positions=group.positions)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_that_share_a_micro_batch_find_the_same(ranks: int) -> None:
    """Against loops; the third prompt has no picture."""
    groups = (PackedGroup(6, (3, 1, 4)), PackedGroup(4, (2,)), PackedGroup(5, (2, 2)))
    visual = (slice(1, 4), slice(2, 4), slice(0, 0))
    packing = Packing(groups)
    keys = concatenate([keys_of(g, v, v.stop - v.start) for g, v in zip(groups, visual, strict=True)])
    hidden = torch.randn(packing.tokens, 7, generator=torch.Generator().manual_seed(0))
    expected, at = [], 0
    for group, of_group in zip(groups, visual, strict=True):
        own = hidden[at : at + group.tokens]
        mean = own[of_group].mean(0) if of_group.stop else torch.zeros(7)
        expected += [float(h @ mean / (h.norm() * mean.norm())) if of_group.stop else 0.0 for h in own[group.prompt :]]
        at += group.tokens

    def of_rank(rank: int, shards: Shards) -> Tensor:
        sequence = ThreadSequence(rank, ranks, shards)
        return visual_similarity(hidden[sequence.own(packing.tokens)], keys, packing, sequence)

    for found in together(ranks, of_rank):
        torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(visual_similarity(hidden, keys, packing, None), torch.tensor(expected))
    half = visual_similarity(hidden.bfloat16(), keys, packing, None)
    assert half.dtype == torch.float32 and (half - torch.tensor(expected)).abs().max() < 0.02
