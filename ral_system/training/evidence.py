"""Which rows are drawn to evidence, and where to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ral_system.attention.evidence import elsewhere, target
from ral_system.batches.collate import Collator
from ral_system.config.attention import AttentionConfig
from ral_system.config.attention_objective import EvidenceObjectiveConfig
from ral_system.errors import DataError
from ral_system.families.family import Family
from ral_system.types import Layout, Prompt, Region, Sample


def target_of(prompt: Prompt, layouts: tuple[Layout, ...], settings: EvidenceObjectiveConfig) -> Tensor | None:
    """Compute the target of rows of this prompt's responses, over its visual tokens [n]; None without evidence.

    With `boxes=other` the boxes are as large as the prompt's own, at places that depend on the prompt's id.
    """
    evidence = prompt.evidence
    if settings.boxes == "other":
        evidence = elsewhere(evidence, prompt.media, prompt.id)
    return target(evidence, prompt.media, layouts, spread=settings.spread, smoothing=settings.smoothing)


def passes_gate(sample: Sample, settings: EvidenceObjectiveConfig) -> bool:
    """Return whether the sample's reward reaches the gate; False without a verdict."""
    reward = None if sample.credit is None else sample.credit.reward
    return reward is not None and reward >= settings.gate


def _is_sampled(region: Region, prompt: Prompt) -> bool:
    """Return whether a frame that the model sees is in the region's time."""
    clip = prompt.media[region.medium].clip
    return any(region.holds(time) for time in (clip.times_s if clip is not None else (None,)))


def evidence_rows(samples: Sequence[Sample], collate: Collator, family: Family, settings: AttentionConfig) -> int:
    """Number of rows of an update that are drawn to evidence, at least 1.

    Raises DataError that names the first prompt without evidence, unless these are to be skipped.
    """
    objective = settings.objective
    if not isinstance(objective, EvidenceObjectiveConfig) or settings.weight == 0:
        return 1
    known: dict[str, bool] = {}
    for prompt in {sample.prompt.id: sample.prompt for sample in samples}.values():
        layouts = tuple(family.layout(medium) for medium in prompt.media)
        known[prompt.id] = target_of(prompt, layouts, objective) is not None
        if not known[prompt.id] and objective.missing == "raise":
            what, remedy = "it does not say where its answer is", "give boxes"
            if prompt.evidence:
                what, remedy = "no sampled frame shows where its answer is", "sample more frames"
            if any(_is_sampled(region, prompt) for region in prompt.evidence):
                what, remedy = "its boxes cover less than a millionth of any visual token", "give larger ones"
            raise DataError(
                f"prompt {prompt.id}: {what}, and algorithm.attention.objective.name=evidence needs to know; {remedy}, "
                "or set algorithm.attention.objective.missing to skip"
            )
    counted = (s for s in samples if known[s.prompt.id] and passes_gate(s, objective))
    return max(1, sum(len(collate.rows(settings.rows, sample)) for sample in counted))
