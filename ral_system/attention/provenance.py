"""Provenance of every key of a sequence: its turn, picture and patch, frame, or the model's own output."""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ral_system.attention.packing import PackedGroup
from ral_system.device_kind import to_device
from ral_system.types import Layout


class KeyKind(enum.IntEnum):
    """Kinds of keys."""

    SYSTEM = 1
    TEXT = 2
    IMAGE = 3
    VIDEO = 4
    GENERATED = 5


@dataclass(frozen=True, slots=True)
class KeyProvenance:
    """Keys of a sequence or a group, or of several one after another. [T] each; -1 where it does not apply. int64,
    but for `evidence`.

    Example, a system token, a text token, an image of 1 × 2 visual tokens and a generated token:
    `KeyProvenance(kind=[1, 2, 3, 3, 5], media=[-1, -1, 0, 0, -1], frame=[-1, -1, 0, 0, -1], row=[-1, -1, 0, 0, -1],
    column=[-1, -1, 0, 1, -1], position=[0, 1, 2, 3, 4], evidence=[-1, -1, 0, 0.5, -1])`
    """

    kind: Tensor
    """A `KeyKind`."""
    media: Tensor
    """Index of the image among the sequence's images, or of the video among its videos."""
    frame: Tensor
    """Frame of a video, counted as the language model sees them; 0 in an image."""
    row: Tensor
    column: Tensor
    position: Tensor
    """Position in the key's own sequence."""
    evidence: Tensor
    """float32: share of a visual key that shows where the answer is to be seen; -1 also where that is not known."""

    def split(self, lengths: Sequence[int]) -> list[KeyProvenance]:
        """Split what is packed into the provenance of each part."""
        parts = [getattr(self, f.name).split(tuple(lengths)) for f in fields(self)]
        return [KeyProvenance(*part) for part in zip(*parts, strict=True)]

    def own(self, group: PackedGroup, response: int) -> KeyProvenance:
        """Select the keys of one response's sequence out of its group's."""
        return KeyProvenance(*(group.own(response, getattr(self, f.name)) for f in fields(self)))

    def to(self, device: torch.device | str) -> KeyProvenance:
        """Copy to another device."""
        return KeyProvenance(*(to_device(getattr(self, f.name), device) for f in fields(self)))


def concatenate(parts: Sequence[KeyProvenance]) -> KeyProvenance:
    """Join the provenance of several parts into that of their packing."""
    return KeyProvenance(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(KeyProvenance)))


def key_provenance(
    visual: Tensor,
    layouts: Sequence[Layout],
    *,
    system_tokens: int,
    prompt_tokens: int,
    positions: Tensor | None = None,
    evidence: Tensor | None = None,
) -> KeyProvenance:
    """Provenance of one sequence or group: a system turn, the rest of the prompt with its media, the responses.

    `visual` bool [T] marks visual tokens; those of the prompt belong to `layouts`, one after the other, whatever text
    stands between them. `positions` are `PackedGroup.positions`; None: of one sequence. `evidence` is that of these
    visual tokens (`evidence.covered`); None: not known. Raises ValueError when the layouts do not make as many.
    """
    positions_T = torch.arange(len(visual), device=visual.device)
    kind = torch.full_like(positions_T, KeyKind.TEXT)
    kind[:system_tokens] = KeyKind.SYSTEM
    media, frame, row, column = (torch.full_like(positions_T, -1) for _ in range(4))
    at = (visual & (positions_T < prompt_tokens)).nonzero()[:, 0]
    expected = sum(layout.tokens for layout in layouts)
    if len(at) != expected:
        raise ValueError(f"the prompt has {len(at)} visual tokens, but its media make {expected}")
    if layouts:
        kind[at], media[at], frame[at], row[at], column[at] = _visual_keys(tuple(layouts)).to(at.device)
    kind[prompt_tokens:] = KeyKind.GENERATED
    shows = torch.full(visual.shape, -1.0, device=visual.device)
    if evidence is not None:
        shows[at] = evidence.to(at.device)
    return KeyProvenance(kind, media, frame, row, column, positions_T if positions is None else positions, shows)


@functools.lru_cache(maxsize=256)
def _visual_keys(layouts: tuple[Layout, ...]) -> Tensor:
    """Kind, media, frame, row and column of the visual tokens of a prompt, in order: int64 [5, tokens]."""
    lengths = torch.tensor([layout.tokens for layout in layouts])
    kinds = [_KINDS[layout.kind] for layout in layouts]
    numbers = [kinds[:i].count(kind) for i, kind in enumerate(kinds)]
    of_media = torch.tensor([kinds, numbers]).repeat_interleave(lengths, dim=1)
    return torch.cat([of_media, torch.cat([places(layout) for layout in layouts], dim=1)])


def places(layout: Layout) -> Tensor:
    """Frame, row and column of every visual token of a medium, in order: int64 [3, tokens].

    The token that ends a line has row and column -1.
    """
    views = layout.views
    tokens = torch.tensor([view.tokens for view in views])
    width = torch.tensor([view.columns + view.line_end for view in views]).repeat_interleave(tokens)
    columns = torch.tensor([view.columns for view in views]).repeat_interleave(tokens)
    frame = torch.tensor([view.frame for view in views]).repeat_interleave(tokens)
    within = torch.arange(len(width)) - (tokens.cumsum(0) - tokens).repeat_interleave(tokens)
    row, column = within // width, within % width
    ends = column == columns
    return torch.stack([frame, row.masked_fill(ends, -1), column.masked_fill(ends, -1)])


_KINDS = {"image": KeyKind.IMAGE, "video": KeyKind.VIDEO}
