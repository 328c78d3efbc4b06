"""Samples to tensors: one packed micro-batch. Suffixes: B sequences, T tokens of all of them, R response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ral_system.attention.provenance import Grid, KeyProvenance, concatenate, key_provenance
from ral_system.config.schema import Keys, Rows
from ral_system.data.features import FeatureExtractor, Features
from ral_system.data.rows import select_keys, select_rows
from ral_system.data.visual_tokens import VisualTokens, token_types
from ral_system.errors import DataError
from ral_system.media.store import MediaStore
from ral_system.types import MicroBatch


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """A micro-batch on one device: sequences one behind the other, without padding.

    Response position r of sequence b sits at token `prompt_lengths[b] + r` of that sequence.
    """

    input_ids: Tensor
    """int64 [T]"""
    lengths: tuple[int, ...]
    """Tokens of each sequence; they sum to T."""
    token_types: Tensor
    """int64 [T], 1 on image tokens, 2 on those of videos (transformers' mm_token_type_ids)."""
    features: Features
    """Of all pictures in sequence order, and of all videos."""
    images: tuple[tuple[Grid, ...], ...]
    """Grids of visual tokens of each sequence's pictures."""
    videos: tuple[tuple[tuple[Grid, float], ...], ...]
    """And of its videos, with the seconds from frame to frame as the model sees them."""
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
    attention_rows: tuple[Tensor, ...]
    """int64 [R_b] of each sequence: positions in it that an attention policy is read from."""
    key_masks: tuple[Tensor | None, ...]
    """bool [T_b] of each sequence: keys that count; None: all."""

    def to(self, device: torch.device | str) -> TensorBatch:
        """The same batch on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return TensorBatch(**{name: _to(value, device) for name, value in values.items()})


class Collator:
    """Builds `TensorBatch`es with a model's own processors.

    `processor` is a Hugging Face processor; `store` holds the media. `rows` and `keys` say which rows attention
    policies are read from, and which keys they count.
    """

    def __init__(self, processor: Any, store: MediaStore, *, rows: Rows = "generated", keys: Keys = "all") -> None:
        self._rows, self._keys = rows, keys
        self._decode = processor.tokenizer.decode
        self._extract, self._visual = FeatureExtractor(processor, store), VisualTokens(processor)
        self._pad_id = processor.tokenizer.pad_token_id

    def __call__(self, samples: MicroBatch) -> TensorBatch:
        """Collate at least one sample. Raises DataError when a sample's media tokens do not fit its media."""
        for s in samples:
            if problem := self._visual.problem((*s.prompt.token_ids, *s.response_token_ids), s.prompt.media):
                raise DataError(f"sample {s.id} {problem}")
        input_ids_T = torch.tensor([i for s in samples for i in (*s.prompt.token_ids, *s.response_token_ids)])
        response_lengths_B = torch.tensor([len(s.response_token_ids) for s in samples])
        response_ids_BR = _pad([s.response_token_ids for s in samples], self._pad_id)
        lengths = tuple(s.length for s in samples)
        token_types_T = token_types(input_ids_T, self._visual)
        images = tuple(tuple(self._visual.grid(m) for m in s.prompt.media if m.clip is None) for s in samples)
        videos = tuple(
            tuple((self._visual.grid(m), m.clip.seconds_per_grid) for m in s.prompt.media if m.clip) for s in samples
        )
        keys = [
            key_provenance(
                types_T,
                images=of_images,
                videos=[grid for grid, _ in of_videos],
                system_tokens=s.prompt.system_tokens,
                prompt_tokens=len(s.prompt.token_ids),
            )
            for s, types_T, of_images, of_videos in zip(
                samples, token_types_T.split(lengths), images, videos, strict=True
            )
        ]
        return TensorBatch(
            input_ids=input_ids_T,
            lengths=lengths,
            token_types=token_types_T,
            features=self._extract([medium for s in samples for medium in s.prompt.media]),
            images=images,
            videos=videos,
            response_ids=response_ids_BR,
            response_mask=torch.arange(response_ids_BR.shape[1])[None] < response_lengths_B[:, None],
            prompt_lengths=torch.tensor([len(s.prompt.token_ids) for s in samples]),
            advantages=torch.tensor([s.advantage for s in samples], dtype=torch.float32),
            keys=concatenate(keys),
            attention_rows=tuple(
                torch.tensor(select_rows(self._rows, s, self._decode), dtype=torch.int64) for s in samples
            ),
            key_masks=tuple(select_keys(self._keys, k) for k in keys),
        )


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor | KeyProvenance | Features):
        return value.to(device)
    return tuple(_to(v, device) for v in value) if isinstance(value, tuple) else value


def _pad(sequences: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    padded = np.full((len(sequences), max(map(len, sequences))), pad_id, dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(padded)
