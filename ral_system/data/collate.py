"""Samples to tensors: one packed micro-batch. Suffixes: B sequences, T tokens of all of them, R response tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ral_system.attention.provenance import Grid, KeyProvenance, concatenate, key_provenance
from ral_system.config.schema import Keys, Rows
from ral_system.data.rows import select_keys, select_rows
from ral_system.errors import DataError
from ral_system.types import Media, MicroBatch


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
    """int64 [T], 1 on image tokens (transformers' mm_token_type_ids)."""
    pixel_values: Tensor | None
    """[patches, features], of all images in sequence order."""
    image_grid_thw: Tensor | None
    """int64 [images, 3]"""
    images: tuple[int, ...]
    """Images of each sequence."""
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
    """Builds `TensorBatch`es with a model's own image processor.

    `processor` is a Hugging Face processor; `open_image` reads a picture by reference. `rows` and `keys` say which rows
    attention policies are read from, and which keys they count.
    """

    def __init__(
        self,
        processor: Any,
        open_image: Callable[[Media], Image.Image],
        *,
        rows: Rows = "generated",
        keys: Keys = "all",
    ) -> None:
        self._rows, self._keys = rows, keys
        self._decode = processor.tokenizer.decode
        self._image_processor = processor.image_processor
        self._image_token_id = processor.image_token_id
        self._pad_id = processor.tokenizer.pad_token_id
        self._open_image = open_image

    def __call__(self, samples: MicroBatch) -> TensorBatch:
        """Collate at least one sample. Raises DataError when a sample's image tokens do not fit its images."""
        input_ids_T = torch.tensor([i for s in samples for i in (*s.prompt.token_ids, *s.response_token_ids)])
        response_lengths_B = torch.tensor([len(s.response_token_ids) for s in samples])
        response_ids_BR = _pad([s.response_token_ids for s in samples], self._pad_id)
        pixel_values, image_grid_thw = self._images(samples)
        lengths = tuple(s.length for s in samples)
        token_types_T = (input_ids_T == self._image_token_id).long()
        keys = self._provenance(samples, token_types_T.split(lengths), image_grid_thw)
        return TensorBatch(
            input_ids=input_ids_T,
            lengths=lengths,
            token_types=token_types_T,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            images=tuple(len(s.prompt.media) for s in samples),
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

    def _provenance(
        self, samples: MicroBatch, token_types: Sequence[Tensor], image_grid_thw: Tensor | None
    ) -> list[KeyProvenance]:
        grids: list[Grid] = []
        if image_grid_thw is not None:
            merge = self._image_processor.merge_size
            grids = [(t, h // merge, w // merge) for t, h, w in image_grid_thw.tolist()]
        found = []
        for sample, types_T in zip(samples, token_types, strict=True):
            mine, grids = grids[: len(sample.prompt.media)], grids[len(sample.prompt.media) :]
            prompt = sample.prompt
            found.append(
                key_provenance(
                    types_T, images=mine, system_tokens=prompt.system_tokens, prompt_tokens=len(prompt.token_ids)
                )
            )
        return found

    def _images(self, samples: MicroBatch) -> tuple[Tensor | None, Tensor | None]:
        pictures = [self._open_image(media) for s in samples for media in s.prompt.media]
        features: Any = {}
        tokens_per_image: list[int] = []
        if pictures:
            features = self._image_processor(images=pictures, return_tensors="pt")
            merged = self._image_processor.merge_size**2
            tokens_per_image = (features["image_grid_thw"].prod(-1) // merged).tolist()
        for sample in samples:
            expected = sum(tokens_per_image[: len(sample.prompt.media)])
            del tokens_per_image[: len(sample.prompt.media)]
            found = (*sample.prompt.token_ids, *sample.response_token_ids).count(self._image_token_id)
            if found != expected:
                raise DataError(f"sample {sample.id}: {found} image tokens, but its images make {expected}")
        return features.get("pixel_values"), features.get("image_grid_thw")


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor | KeyProvenance):
        return value.to(device)
    return tuple(_to(v, device) for v in value) if isinstance(value, tuple) else value


def _pad(sequences: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    padded = np.full((len(sequences), max(map(len, sequences))), pad_id, dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(padded)
