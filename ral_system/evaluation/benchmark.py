"""A benchmark's items as prompts, and the figures of its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ral_system.benchmarks.item import BadItem, Benchmark, Item, MediaFile, Scored
from ral_system.data.chat import ChatRenderer
from ral_system.data.preparation import kind_of_reason
from ral_system.errors import DataError
from ral_system.evaluation.intervals import Resampled, bootstrap, grouped, unit_of
from ral_system.families.family import PixelBudget, sized
from ral_system.media.decoders import Decoders
from ral_system.media.encoded import EncodedMedia
from ral_system.rewards.format import extract_answer
from ral_system.types import Completion, MediaKind, Prompt


@dataclass(frozen=True, slots=True)
class Asked:
    """An item and the prompt that it becomes."""

    item: Item
    prompt: Prompt


def ask(
    items: Iterable[Item | BadItem],
    decoders: Decoders,
    renderer: ChatRenderer,
    budgets: Mapping[MediaKind, PixelBudget],
    max_tokens: int,
    show: Callable[[int], None],
) -> tuple[list[Asked], list[BadItem]]:
    """Build prompts in the order of the items, and list items that cannot be asked. `show` gets the count so far."""
    asked: list[Asked] = []
    bad: list[BadItem] = []
    with_media = ((item, [] if isinstance(item, BadItem) else [_encoded(m) for m in item.media]) for item in items)
    for item, found in decoders.stored(with_media):
        try:
            if isinstance(item, BadItem):
                bad.append(item)
            elif isinstance(found, DataError):
                raise found
            else:
                media = [sized(medium, budgets) for medium in found]
                prompt = renderer.prompt(id=item.id, kind=item.category, question=item.text, answer="", media=media)
                if len(prompt.token_ids) > max_tokens:
                    raise DataError(
                        f"{len(prompt.token_ids):,} tokens, at most {max_tokens:,} (rollout.max_model_len - "
                        "rollout.max_new_tokens) leave room for an answer"
                    )
                asked.append(Asked(item, replace(prompt, answer=" | ".join(item.references))))
        except (DataError, ValueError) as error:
            bad.append(BadItem(item.id, str(error)))
        show(len(asked) + len(bad))
    return asked, bad


def most_often(bad: Sequence[BadItem]) -> str:
    """Name the most frequent reason why items cannot be asked; there must be at least one."""
    reason, count = Counter(kind_of_reason(item.reason) for item in bad).most_common(1)[0]
    return f"{'most often' if count > 1 else 'for example'}: {reason}"


def final_answer(text: str) -> str:
    """Return the text to score: the content of the only answer block; without any, all after the thought. Several
    blocks, or an unclosed thought, do not make an answer.
    """
    if (answer := extract_answer(text)) is not None:
        return answer
    if "<answer>" in text or ("<think>" in text and "</think>" not in text):
        return ""
    return text.rpartition("</think>")[2].strip()


@dataclass(frozen=True, slots=True)
class Results:
    """Results of one model on one benchmark."""

    scores: Mapping[str, tuple[float, ...]]
    """Item id → score of each of its answers."""
    figures: Mapping[str, float]
    """The authors' figures, averaged over the answers to each question."""
    resampled: Resampled
    """The figures on resamples of the questions."""


def results(benchmark: Benchmark, asked: Sequence[Asked], answers: Mapping[str, Sequence[Completion]]) -> Results:
    """Score every answer and sum up. Questions that count together, or share their picture or video, are drawn together
    for the resamples, within the category of the first: benchmarks have as many of each on purpose.
    """
    scores = {
        a.item.id: tuple(benchmark.score(a.item, final_answer(c.text)) for c in answers[a.prompt.id]) for a in asked
    }
    samples = range(min(map(len, scores.values())))
    units = grouped((unit_of(a.prompt, a.item.together), a.item) for a in asked)

    def figures(units: Sequence[Sequence[Item]]) -> dict[str, float]:
        of_sample = [benchmark.summary(_scored(units, scores, s)) for s in samples]
        return {name: sum(one[name] for one in of_sample) / len(of_sample) for name in of_sample[0]}

    resampled = bootstrap(units, figures, strata=[unit[0].category for unit in units])
    return Results(scores, figures(units), resampled)


def _scored(units: Sequence[Sequence[Item]], scores: Mapping[str, tuple[float, ...]], sample: int) -> Scored:
    """Pair the items of drawn units with their scores; a unit drawn twice counts as two."""
    return [
        (replace(item, together=f"{item.together}~{at}") if item.together else item, scores[item.id][sample])
        for at, unit in enumerate(units)
        for item in unit
    ]


def _encoded(media: MediaFile) -> EncodedMedia:
    return EncodedMedia(media.kind, media.encoded, media.path, media.start_s or 0.0, media.end_s, media.frames_per_s)
