"""What every key of a sequence is: which turn, which picture and patch, which frame, or the model's own output."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

Grid = tuple[int, int, int]
"""Frames, rows and columns of visual tokens (patches merged as the language model sees them)."""


class KeyKind(enum.IntEnum):
    """Kinds of keys. A packed sequence has no padding; PAD is for layouts that do."""

    PAD = 0
    SYSTEM = 1
    TEXT = 2
    IMAGE = 3
    VIDEO = 4
    GENERATED = 5


IMAGE_TYPE, VIDEO_TYPE = 1, 2
"""transformers' mm_token_type_ids."""


@dataclass(frozen=True, slots=True)
class KeyProvenance:
    """One sequence's keys, or several sequences' one behind the other. int64 [T] each; -1 where it does not apply.

    Example, a system token, a text token, an image of 1 × 2 visual tokens and a generated token:
    `KeyProvenance(kind=[1, 2, 3, 3, 5], media=[-1, -1, 0, 0, -1], frame=[-1, -1, 0, 0, -1], row=[-1, -1, 0, 0, -1],
    column=[-1, -1, 0, 1, -1])`
    """

    kind: Tensor
    """A `KeyKind`."""
    media: Tensor
    """Index of the image among the sequence's images, or of the video among its videos."""
    frame: Tensor
    """Of a video, counted in frames as the language model sees them; 0 in an image."""
    row: Tensor
    column: Tensor

    def split(self, lengths: Sequence[int]) -> list[KeyProvenance]:
        """Of each of the sequences that lie one behind the other."""
        parts = [getattr(self, f.name).split(tuple(lengths)) for f in fields(self)]
        return [KeyProvenance(*part) for part in zip(*parts, strict=True)]

    def to(self, device: torch.device | str) -> KeyProvenance:
        """The same on another device."""
        return KeyProvenance(*(getattr(self, f.name).to(device) for f in fields(self)))


def concatenate(parts: Sequence[KeyProvenance]) -> KeyProvenance:
    """Of several sequences, one behind the other."""
    return KeyProvenance(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(KeyProvenance)))


def key_provenance(
    token_types: Tensor,
    *,
    images: Sequence[Grid] = (),
    videos: Sequence[Grid] = (),
    system_tokens: int,
    prompt_tokens: int,
    padding: Tensor | None = None,
) -> KeyProvenance:
    """Provenance of one sequence: a system turn, the rest of the prompt with its media, the response.

    `token_types` int [T] are transformers' mm_token_type_ids (0 text, 1 image, 2 video). The visual tokens of each kind
    follow one another in the order of its grids, frame by frame, row by row, whatever text stands between them.
    `padding` bool [T] marks tokens that are none. Raises ValueError when the grids do not make as many visual tokens.
    """
    positions_T = torch.arange(len(token_types), device=token_types.device)
    kind = torch.full_like(positions_T, KeyKind.TEXT)
    kind[:system_tokens] = KeyKind.SYSTEM
    media, frame, row, column = (torch.full_like(positions_T, -1) for _ in range(4))
    for name, token_type, of_kind, grids in (
        ("image", IMAGE_TYPE, KeyKind.IMAGE, images),
        ("video", VIDEO_TYPE, KeyKind.VIDEO, videos),
    ):
        at = ((token_types == token_type) & (positions_T < prompt_tokens)).nonzero()[:, 0]
        expected = sum(frames * height * width for frames, height, width in grids)
        if len(at) != expected:
            raise ValueError(f"token_types has {len(at)} {name} tokens, but the grids {list(grids)} make {expected}")
        kind[at] = of_kind
        if grids:
            cells = torch.cat([_cells(index, grid) for index, grid in enumerate(grids)], dim=1).to(at.device)
            media[at], frame[at], row[at], column[at] = cells
    kind[prompt_tokens:] = KeyKind.GENERATED
    if padding is not None:
        kind[padding] = KeyKind.PAD
    return KeyProvenance(kind, media, frame, row, column)


def _cells(index: int, grid: Grid) -> Tensor:
    """[4, cells]: media, frame, row and column of every visual token of one image or video, in order."""
    axes = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    return torch.stack([torch.full(grid, index), *axes]).flatten(1)
