"""The `evaluation`, `intervention` and `sweep` groups: what is measured, on which model, at which sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from ral_system.config.base import Group, NameIn, NonNegative, NonNegativeFloat, Positive
from ral_system.config.choices import Space
from ral_system.config.inert import without_effect
from ral_system.registry import BENCHMARKS

SweepAxis = Literal["visual_tokens", "frames"]


class BenchmarkConfig(Group):
    """What `ral-evaluate` asks in place of the held-out questions of `data`, with data=files: its pictures and frames
    are sized, and its system turn worded, as `data` says."""

    name: Annotated[str, NameIn(BENCHMARKS)] | None
    """null: none."""
    folder: str | None
    """Folder of its files, as they were released."""
    limit: Positive | None
    """Only so many of its questions, as many of every category as far as there are, and one more to have both of a
    pair."""

    def problems(self) -> Iterator[str]:
        """Refuse a benchmark without its files, and a limit without a benchmark."""
        path = "evaluation.benchmark"
        if (self.name is None) != (self.folder is None):
            yield (f"{path}.name={self.name} and {path}.folder={self.folder} go together; set both, or both to null")
        if self.name is None:
            yield from without_effect(self, path, f"{path}.name=null", "set name and folder", "limit")


class HeldOutConfig(Group):
    """The held-out questions."""

    questions: Positive
    """Number of held-out questions for `ral-evaluate`, and in training before and after RL."""


class EvaluationConfig(HeldOutConfig):
    """Held-out evaluation in training: greedy, all question kinds."""

    stage_questions: Positive
    """Number of questions at the evaluations inside a supervised stage."""
    every: NonNegative
    """RL steps between evaluations; 0 evaluates only before and after."""
    every_questions: Positive
    """Number of questions at the evaluations inside RL."""
    blind: bool
    """Before, inside and after RL also ask with every picture and frame black: twice as many answers."""

    def problems(self) -> Iterator[str]:
        """Refuse the number of questions of evaluations that do not take place."""
        if self.every == 0:
            path = "evaluation"
            yield from without_effect(self, path, f"{path}.every=0", f"raise {path}.every", "every_questions")


class MeasurementConfig(HeldOutConfig):
    """What `ral-evaluate` asks a model, and how often."""

    attention_questions: NonNegative
    """Held-out questions whose visual attention score `ral-evaluate` measures, and where their answers look; 0 none."""
    samples: Positive
    """Answers per question in `ral-evaluate`: 1 greedy, more at rollout.temperature, and scores are their mean."""
    saliency: bool
    """Also measure how far attention agrees with the gradients of the answers, with `attention_questions`: a backward
    pass for each answer."""
    blind: bool
    """Also ask with every picture and frame black, and with the pictures of other questions, and show what is left of
    each figure: three times as many answers."""
    attended: Annotated[float, Field(gt=0, lt=1)] | None
    """Also ask with all black but this share of the visual tokens, those that the answers look at most, with just these
    black, and both with random ones: five times as many answers. null: do not."""
    benchmark: BenchmarkConfig

    def problems(self) -> Iterator[str]:
        """Refuse to compare gradients with attention that is not read."""
        value = "evaluation.saliency=true"
        if self.saliency and self.attention_questions == 0:
            yield f"{value} has no effect with evaluation.attention_questions=0; raise it, or set saliency to false"
        if self.saliency and self.benchmark.name is not None:
            because = f"evaluation.benchmark.name={self.benchmark.name}"
            yield f"{value} has no effect with {because}: it is of held-out questions; set it to false"


class InterventionConfig(Group):
    """Steering where a model looks in `ral-evaluate`, without training it (AVAR 2.2); compared with the plain model."""

    image: NonNegativeFloat
    """How much more attention goes to visual tokens (the paper: 0.15)."""
    system: Annotated[float, Field(ge=0, lt=1)]
    """How much less goes to the system turn (the paper: 0 to 0.6)."""
    space: Space
    """What is changed: attention weights, each row renormalised, or the logits, literally."""
    layers: Literal["all"] | Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    heads: Literal["all"] | Annotated[tuple[NonNegative, ...], Field(min_length=1)]

    @property
    def active(self) -> bool:
        """Whether it steers at all."""
        return self.image > 0 or self.system > 0

    def problems(self) -> Iterator[str]:
        """Refuse settings of steering that is off."""
        if not self.active:
            reason = "intervention.image=0 and intervention.system=0"
            yield from without_effect(self, "intervention", reason, "raise one", "space", "layers", "heads")


class SweepConfig(Group):
    """`ral-evaluate` at several sizes of the media, for several models: how much each gains from seeing more."""

    axis: SweepAxis | None
    """visual_tokens: at most so many of a picture; of visual search the cells of its board, a square number, with
    `data.objects` of them filled as far as they fit. frames: at most so many of a video."""
    values: tuple[Positive, ...]
    models: dict[str, str]
    """Folders by the names that the table and the chart show; none: start_model alone."""

    def problems(self) -> Iterator[str]:
        """Refuse half a sweep, and frame counts that models cannot see."""
        if self.axis is None:
            for name, value in (("values", self.values), ("models", self.models)):
                if value:
                    yield (f"sweep.{name} has no effect with sweep.axis=null; choose sweep=visual_tokens or frames")
        elif not self.values:
            yield f"sweep.values=[] leaves sweep.axis={self.axis} nothing to try; give some"
        if self.axis == "frames" and (odd := [value for value in self.values if value < 2 or value % 2]):
            yield (
                f"sweep.values={odd}: frame counts must be even and at least 2, since models merge frames in pairs; "
                "round them"
            )


def sweep_is_not_blind(sweep: SweepConfig, evaluation: MeasurementConfig) -> Iterator[str]:
    """Check that a sweep is not asked to be blind as well, with parts of the pictures, or for gradients."""
    if sweep.axis is None:
        return
    if evaluation.blind:
        yield f"evaluation.blind=true has no effect with sweep.axis={sweep.axis}; set one of them to false or null"
    if evaluation.saliency:
        yield f"evaluation.saliency=true has no effect with sweep.axis={sweep.axis}; set one of them to false or null"
    if evaluation.attended is not None:
        value = f"evaluation.attended={evaluation.attended:g}"
        yield f"{value} has no effect with sweep.axis={sweep.axis}; set one of them to null"
