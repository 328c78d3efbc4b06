"""Samples to tensors: one packed micro-batch. Suffixes: B sequences, T tokens of all of them, R response tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ral_system.attention.provenance import KeyProvenance, concatenate, key_provenance
from ral_system.attention.selection import select_rows
from ral_system.config.choices import Rows
from ral_system.data.features import FeatureExtractor
from ral_system.errors import DataError
from ral_system.families.family import Family, Features
from ral_system.media.store import MediaStore
from ral_system.types import Layout, MicroBatch, Sample


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """A micro-batch on one device: sequences one behind the other, without padding.

    Response position r of sequence b sits at token `prompt_lengths[b] + r` of that sequence.
    """

    input_ids: Tensor
    """int64 [T]"""
    lengths: tuple[int, ...]
    """Tokens of each sequence; they sum to T."""
    features: Features
    """Pictures in the order of the sequences, and videos."""
    layouts: tuple[tuple[Layout, ...], ...]
    """Visual tokens of each sequence's media."""
    response_ids: Tensor
    """int64 [B, R], padded: what a response holds is small beside its prompt."""
    response_mask: Tensor
    """bool [B, R]"""
    prompt_lengths: Tensor
    """int64 [B]"""
    advantages: Tensor
    """float32 [B]"""
    keys: KeyProvenance
    """[T]"""
    rows: Mapping[Rows, tuple[Tensor, ...]]
    """int64 [R_b] of each sequence, for every kind of rows: positions in it that attention can be read from."""

    def to(self, device: torch.device | str) -> TensorBatch:
        """Copy the batch to another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return TensorBatch(**{name: _to(value, device) for name, value in values.items()})


class Collator:
    """Builds `TensorBatch`es as a family's models read them; `store` holds the media."""

    def __init__(self, family: Family, store: MediaStore) -> None:
        self._family, self._extract = family, FeatureExtractor(family, store)
        self._pad_id = family.tokenizer.pad_token_id
        self._texts: dict[int, str] = {}

    def __call__(self, samples: MicroBatch) -> TensorBatch:
        """Collate at least one sample. Raises DataError when a sample's media tokens do not fit its media."""
        for s in samples:
            if problem := self._family.problem((*s.prompt.token_ids, *s.response_token_ids), s.prompt.media):
                raise DataError(f"sample {s.id} {problem}")
        input_ids_T = torch.tensor([i for s in samples for i in (*s.prompt.token_ids, *s.response_token_ids)])
        response_lengths_B = torch.tensor([len(s.response_token_ids) for s in samples])
        response_ids_BR = _pad([s.response_token_ids for s in samples], self._pad_id)
        lengths = tuple(s.length for s in samples)
        layouts = tuple(tuple(self._family.layout(m) for m in s.prompt.media) for s in samples)
        keys = [
            key_provenance(
                visual_T,
                of_sample,
                system_tokens=s.prompt.system_tokens,
                prompt_tokens=len(s.prompt.token_ids),
            )
            for s, visual_T, of_sample in zip(
                samples, self._family.visual(input_ids_T).split(lengths), layouts, strict=True
            )
        ]
        return TensorBatch(
            input_ids=input_ids_T,
            lengths=lengths,
            features=self._extract([medium for s in samples for medium in s.prompt.media]),
            layouts=layouts,
            response_ids=response_ids_BR,
            response_mask=torch.arange(response_ids_BR.shape[1])[None] < response_lengths_B[:, None],
            prompt_lengths=torch.tensor([len(s.prompt.token_ids) for s in samples]),
            advantages=torch.tensor([s.advantage for s in samples], dtype=torch.float32),
            keys=concatenate(keys),
            rows={kind: tuple(self.rows(kind, s) for s in samples) for kind in get_args(Rows)},
        )

    def rows(self, kind: Rows, sample: Sample) -> Tensor:
        """Positions in the sample's sequence that attention is read from: int64 [R]."""
        return torch.tensor(select_rows(kind, sample, self._text), dtype=torch.int64)

    def _text(self, token: int) -> str:
        """Text of one token."""
        if token not in self._texts:
            self._texts[token] = self._family.tokenizer.decode([token])
        return self._texts[token]


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor | KeyProvenance):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _to(v, device) for name, v in value.items()}
    return tuple(_to(v, device) for v in value) if isinstance(value, tuple) else value


def _pad(sequences: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    padded = np.full((len(sequences), max(map(len, sequences))), pad_id, dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(padded)
