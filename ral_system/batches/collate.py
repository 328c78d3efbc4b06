"""Samples to tensors: one packed micro-batch. Suffixes: B samples, T tokens of the stream, R response tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ral_system.attention.evidence import covered
from ral_system.attention.packing import Packing
from ral_system.attention.provenance import KeyProvenance, concatenate, key_provenance
from ral_system.attention.selection import select_rows
from ral_system.batches.features import FeatureExtractor
from ral_system.batches.micro_batches import groups_of
from ral_system.config.choices import Rows
from ral_system.device_kind import to_device
from ral_system.errors import DataError
from ral_system.families.family import Encoded, Family, Features, Occurrences
from ral_system.media.store import MediaStore
from ral_system.types import Layout, Media, MicroBatch, Sample

PositionsOfGroups = tuple[tuple[Tensor, ...], ...]
"""For every group, int64 [R_b] of each response."""


class RowPositions:
    """Positions by kind of rows, found when they are asked for: a pass reads one kind, and the text of answers is slow
    to search.
    """

    def __init__(self, find: Callable[[Rows], PositionsOfGroups], device: torch.device | str = "cpu") -> None:
        self._find, self._device = find, device
        self._found: dict[Rows, PositionsOfGroups] = {}

    def __getitem__(self, kind: Rows) -> PositionsOfGroups:
        if kind not in self._found:
            self._found[kind] = _to(self._find(kind), self._device)
        return self._found[kind]

    def to(self, device: torch.device | str) -> RowPositions:
        """Positions on another device."""
        return RowPositions(self._find, device)


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """A micro-batch on one device: groups one after another, each a prompt once and then its responses."""

    input_ids: Tensor
    """int64 [T]"""
    packing: Packing
    """Which tokens are which group's prompt and responses; the responses are the samples in order."""
    features: Features
    """What the encoder reads of the distinct pictures, and videos."""
    occurrences: Occurrences
    """Which of them stands where."""
    position_ids: Tensor
    """int64 [3, 1, T], or [1, T] with one axis: rotary positions of every token, from 0 in each sequence."""
    layouts: tuple[tuple[Layout, ...], ...]
    """Visual tokens of the media of each group's prompt."""
    response_ids: Tensor
    """int64 [B, R], padded: what a response holds is small beside its prompt."""
    response_mask: Tensor
    """bool [B, R]"""
    advantages: Tensor
    """float32 [B]"""
    keys: KeyProvenance
    """[T]"""
    rows: RowPositions
    """Positions in the group that attention can be read from."""

    encoded: Encoded | None = None
    """What the vision encoder saw in the distinct media, where that is known already; `features` are then empty."""

    def to(self, device: torch.device | str) -> TensorBatch:
        """Copy the batch to another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return TensorBatch(**{name: _to(value, device) for name, value in values.items()})


class Collator:
    """Builds `TensorBatch`es as a family's models read them; `store` holds the media."""

    def __init__(self, family: Family, store: MediaStore) -> None:
        self._family, self._extract = family, FeatureExtractor(family, store)
        self._texts: dict[int, str] = {}

    def __call__(self, samples: MicroBatch, encoded: Mapping[Media, Any] | None = None) -> TensorBatch:
        """Collate at least one sample. Raises DataError when a sample's media tokens do not fit its media.

        `encoded` holds what the vision encoder saw in all of their media; None: it is still to see them.
        """
        for s in samples:
            if problem := self._family.problem((*s.prompt.token_ids, *s.response_token_ids), s.prompt.media):
                raise DataError(f"sample {s.id} {problem}")
        groups = groups_of(samples)
        prompts = [group[0].prompt for group in groups]
        packing = Packing(
            tuple(self._family.packed(g[0].prompt.token_ids, [len(s.response_token_ids) for s in g]) for g in groups)
        )
        input_ids_T = torch.tensor(
            [i for g in groups for ids in (g[0].prompt.token_ids, *(s.response_token_ids for s in g)) for i in ids]
        )
        response_ids_BR = _pad([s.response_token_ids for s in samples])
        response_lengths_B = torch.tensor([len(s.response_token_ids) for s in samples])
        layouts = tuple(tuple(self._family.layout(m) for m in prompt.media) for prompt in prompts)
        media = [medium for prompt in prompts for medium in prompt.media]
        unique, occurrences = self._extract.distinct(media)
        visual = self._family.visual(input_ids_T).split(packing.lengths)
        keys = [
            key_provenance(
                visual_T,
                of_prompt,
                system_tokens=prompt.system_tokens,
                prompt_tokens=len(prompt.token_ids),
                positions=group.positions,
                evidence=covered(prompt.evidence, prompt.media, of_prompt) if prompt.evidence else None,
            )
            for prompt, group, visual_T, of_prompt in zip(prompts, packing.groups, visual, layouts, strict=True)
        ]
        return TensorBatch(
            input_ids=input_ids_T,
            packing=packing,
            features=self._extract(unique) if encoded is None else {},
            occurrences=occurrences,
            position_ids=self._position_ids(visual, packing, layouts),
            layouts=layouts,
            response_ids=response_ids_BR,
            response_mask=torch.arange(response_ids_BR.shape[1])[None] < response_lengths_B[:, None],
            advantages=torch.tensor([s.advantage for s in samples], dtype=torch.float32),
            keys=concatenate(keys),
            rows=RowPositions(
                lambda kind: tuple(
                    tuple(packed.rows(b, self.rows(kind, s)) for b, s in enumerate(group))
                    for packed, group in zip(packing.groups, groups, strict=True)
                )
            ),
            encoded=None if encoded is None else _by_kind(unique, encoded),
        )

    def rows(self, kind: Rows, sample: Sample) -> Tensor:
        """Positions in the sample's sequence that attention is read from: int64 [R]."""
        return torch.tensor(select_rows(kind, sample, self._text), dtype=torch.int64)

    def _position_ids(self, visual: Sequence[Tensor], packing: Packing, layouts: Sequence[Sequence[Layout]]) -> Tensor:
        positions = []
        for visual_T, group, of_prompt in zip(visual, packing.groups, layouts, strict=True):
            longest = pad(visual_T[: group.prompt], (0, max(group.responses)))  # responses hold no visual tokens
            positions.append(self._family.positions(longest, of_prompt)[:, group.positions])
        together = torch.cat(positions, dim=-1)
        return together[:, None] if len(together) > 1 else together

    def _text(self, token: int) -> str:
        """Text of one token."""
        if token not in self._texts:
            self._texts[token] = self._family.tokenizer.decode([token])
        return self._texts[token]


def _by_kind(media: Sequence[Media], encoded: Mapping[Media, Any]) -> Encoded:
    found: Encoded = {}
    for medium in media:
        found[medium.kind] = (*found.get(medium.kind, ()), encoded[medium])
    return found


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return to_device(value, device)
    if isinstance(value, KeyProvenance | RowPositions):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _to(v, device) for name, v in value.items()}
    return tuple(_to(v, device) for v in value) if isinstance(value, tuple) else value


def _pad(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Pad sequences with zeros, which are masked: a tokenizer need not have a padding token."""
    padded = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(padded)
