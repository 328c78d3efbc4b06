"""Which layers, and which rows of a sequence, an attention policy is read from, and which keys count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from ral_system.attention.metrics import SINK_TOKENS
from ral_system.attention.provenance import KeyKind, KeyProvenance
from ral_system.config.choices import Keys, Layers, Rows
from ral_system.types import Sample


def select_layers(kind: Layers | Sequence[int], softmax: Sequence[int], count: int) -> list[int]:
    """Text layers by depth, the deepest last.

    An index counts all `count` layers, from the end if it is negative; "last" and "all" are of those with `softmax`
    attention. Raises ValueError for layers that are not there, are named twice, or have no attention weights.
    """
    indices = {"last": softmax[-1:], "all": softmax}[kind] if isinstance(kind, str) else kind
    if wrong := [i for i in indices if not -count <= i < count]:
        raise ValueError(f"layers={list(indices)}: the model has {count} layers, so no layer {wrong[0]}")
    chosen = sorted(i % count for i in indices)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"layers={list(indices)} names a layer of the model's {count} twice")
    if linear := [i for i in indices if i % count not in softmax]:
        raise ValueError(
            f"layers={list(indices)}: layer {linear[0]} has linear attention, which has no weights to read; layers "
            f"with softmax attention are {', '.join(map(str, softmax))}"
        )
    return chosen


def select_rows(kind: Rows, sample: Sample, text: Callable[[int], str]) -> list[int]:
    """Positions of the rows in the sample's sequence.

    generated: every response token (the paper's). predicting: the row before each, which chose it. answer: response
    tokens between `<answer>` and `</answer>`, all when there is none. instruction: the question's text. `text` is that
    of a token.
    """
    prompt, response = len(sample.prompt.token_ids), len(sample.response_token_ids)
    if kind == "generated":
        return list(range(prompt, prompt + response))
    if kind == "predicting":
        return list(range(prompt - 1, prompt + response - 1))
    if kind == "answer":
        return [prompt + r for r in answer_rows([text(token) for token in sample.response_token_ids])]
    if kind == "instruction":
        return list(sample.prompt.question_positions)
    raise ValueError(f"rows={kind!r}; known: generated, predicting, answer, instruction")


def row_tokens(kind: Rows, sample: Sample, rows: Sequence[int]) -> list[int]:
    """The response token that each of `select_rows` belongs to; the first one for rows of the question."""
    first = len(sample.prompt.token_ids) - (kind == "predicting")
    return [max(0, row - first) for row in rows]


def select_keys(kind: Keys, keys: KeyProvenance) -> Tensor | None:
    """bool [T], the keys that count; None for all.

    visual: pictures and videos. prompt: all but the model's own output. no_sinks: all but the first four tokens.
    """
    if kind == "all":
        return None
    if kind == "visual":
        return (keys.kind == KeyKind.IMAGE) | (keys.kind == KeyKind.VIDEO)
    if kind == "prompt":
        return keys.kind != KeyKind.GENERATED
    if kind == "no_sinks":
        return keys.position >= SINK_TOKENS
    raise ValueError(f"keys={kind!r}; known: all, visual, prompt, no_sinks")


def shared_keys(kind: Literal["visual", "prompt"], keys: KeyProvenance) -> Tensor:
    """int64 [N], the positions of keys that all responses of a group have, pictures and videos or the whole prompt."""
    mask = select_keys(kind, keys)
    assert mask is not None
    return mask.nonzero()[:, 0]


def answer_rows(pieces: Sequence[str]) -> list[int]:
    """Indices of the response tokens with text between `<answer>` and `</answer>`; all tokens when there is none.

    `pieces` is the text of each token; a tag may be one token, several, or part of one.
    """
    text = "".join(pieces)
    opening = text.find("<answer>")
    start = opening + len("<answer>")
    closing = text.find("</answer>", start)
    end = closing if closing >= 0 else len(text)
    rows, at = [], 0
    for index, piece in enumerate(pieces):
        if opening >= 0 and at < end and at + len(piece) > start:
            rows.append(index)
        at += len(piece)
    return rows or list(range(len(pieces)))
