"""Which engine makes which completions: dealt by estimated load, in whole groups where that leaves no engine idle."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from ral_system.types import Piece, Prompt, Sampling


def deal(prompts: Sequence[Prompt], sampling: Sampling, engines: int) -> list[list[Piece]]:
    """Return each engine's pieces, in the order of the prompts; they depend on the arguments alone.

    Pieces go to the engine with the least to do, the largest first. A group is cut in two, at the price of a second
    prefill of its prompt, while an engine would have nothing to do, or if the longest share becomes shorter, or one of
    several that are equally long.
    """
    pieces = [Piece(prompt, 0, sampling.completions) for prompt in prompts]
    while len(pieces) < engines and (piece := _divisible(pieces)):
        pieces = _cut(pieces, piece)
    shares = _fill(pieces, sampling, engines)
    while piece := _divisible(_longest(shares, sampling)):
        finer = _cut(pieces, piece)
        dealt = _fill(finer, sampling, engines)
        if _loads(dealt, sampling) >= _loads(shares, sampling):
            break
        pieces, shares = finer, dealt
    return shares


def _fill(pieces: Sequence[Piece], sampling: Sampling, engines: int) -> list[list[Piece]]:
    """Longest processing time first, a schedule within a third of the best one's length."""
    loads = [(0, engine) for engine in range(engines)]
    dealt: list[list[int]] = [[] for _ in range(engines)]
    for at in sorted(range(len(pieces)), key=lambda at: -_load(pieces[at : at + 1], sampling)):
        load, engine = loads[0]
        dealt[engine].append(at)
        heapq.heapreplace(loads, (load + _load(pieces[at : at + 1], sampling), engine))
    return [[pieces[at] for at in sorted(share)] for share in dealt]


def _load(pieces: Sequence[Piece], sampling: Sampling) -> int:
    """Tokens to prefill and to decode at most; visual tokens, which an encoder reads first, count twice."""
    prefill = sum(len(p.prompt.token_ids) + p.prompt.visual_tokens for p in pieces)
    return prefill + sum(p.completions for p in pieces) * sampling.max_new_tokens


def _loads(shares: Sequence[Sequence[Piece]], sampling: Sampling) -> list[int]:
    """The loads, the longest first."""
    return sorted((_load(share, sampling) for share in shares), reverse=True)


def _longest(shares: Sequence[Sequence[Piece]], sampling: Sampling) -> Sequence[Piece]:
    return max(shares, key=lambda share: _load(share, sampling))


def _divisible(pieces: Sequence[Piece]) -> Piece | None:
    """The piece with the most completions, if it has several."""
    largest = max(pieces, key=lambda piece: piece.completions, default=None)
    return largest if largest and largest.completions > 1 else None


def _cut(pieces: Sequence[Piece], piece: Piece) -> list[Piece]:
    """The pieces with this one in halves, which stay in its place."""
    at, half = pieces.index(piece), piece.completions // 2
    halves = (
        Piece(piece.prompt, piece.first, piece.completions - half),
        Piece(piece.prompt, piece.first + piece.completions - half, half),
    )
    return [*pieces[:at], *halves, *pieces[at + 1 :]]
