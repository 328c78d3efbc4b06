"""Which samples pass a model together: groups that share their prompts, up to a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ral_system.types import MicroBatch, Sample


def groups_of(samples: Sequence[Sample]) -> list[MicroBatch]:
    """Neighbouring samples with the same prompt."""
    groups: list[list[Sample]] = []
    for sample in samples:
        if groups and (sample.prompt is groups[-1][0].prompt or sample.prompt == groups[-1][0].prompt):
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return [tuple(group) for group in groups]


def price(group: MicroBatch) -> int:
    """Tokens of a group, its prompt once; visual tokens, which an encoder reads first, count twice."""
    prompt = group[0].prompt
    return len(prompt.token_ids) + prompt.visual_tokens + sum(len(s.response_token_ids) for s in group)


def micro_batches(groups: Sequence[MicroBatch], max_tokens: int) -> list[MicroBatch]:
    """Pack groups into micro-batches whose prices add up to at most `max_tokens`, groups of one shape side by side.

    Each goes, the most expensive first, to the first micro-batch with room for it. A group that is too expensive is
    cut up, and its prompt repeated. A single sample that is too expensive is a micro-batch of its own.
    """
    pieces = sorted((piece for group in groups for piece in _cut(group, max_tokens)), key=_shape)
    prices = [price(piece) for piece in pieces]
    packed: list[list[int]] = []
    spent: list[int] = []
    for piece in sorted(range(len(pieces)), key=lambda i: -prices[i]):
        at = next((at for at, tokens in enumerate(spent) if tokens + prices[piece] <= max_tokens), len(packed))
        if at == len(packed):
            packed.append([])
            spent.append(0)
        packed[at].append(piece)
        spent[at] += prices[piece]
    return [tuple(sample for i in mine for sample in pieces[i]) for mine in sorted(map(sorted, packed))]


class Bundler:
    """Holds groups back until a pass over them is worth while: an eighth of what one may hold.

    A pass over few tokens takes about as long as one over more, and groups of short responses end together. Bundles
    depend on the groups and their order alone, not on when they come.
    """

    def __init__(self, max_tokens: int) -> None:
        self._enough = max_tokens // 8
        self._held: list[Sample] = []
        self._tokens = 0

    def add(self, group: Sequence[Sample]) -> list[Sample]:
        """The samples to pass now, this whole group among them, or none."""
        self._held += group
        self._tokens += price(tuple(group))
        return self.rest() if self._tokens >= self._enough else []

    def rest(self) -> list[Sample]:
        """The samples that are held."""
        held, self._held, self._tokens = self._held, [], 0
        return held


def bundles(groups: Sequence[MicroBatch], max_tokens: int) -> list[MicroBatch]:
    """The groups of a batch as a `Bundler` hands them on."""
    bundler = Bundler(max_tokens)
    found = [*(bundler.add(group) for group in groups), bundler.rest()]
    return [tuple(bundle) for bundle in found if bundle]


def _cut(group: MicroBatch, max_tokens: int) -> Iterator[MicroBatch]:
    """The group in pieces that fit, in order."""
    piece: MicroBatch = ()
    for sample in group:
        if piece and price((*piece, sample)) > max_tokens:
            yield piece
            piece = ()
        piece += (sample,)
    yield piece


def _shape(piece: MicroBatch) -> tuple[int, list[int], str]:
    return price(piece), [len(s.response_token_ids) for s in piece], piece[0].id
