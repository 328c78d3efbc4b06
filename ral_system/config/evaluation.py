"""The `evaluation`, `intervention` and `sweep` groups: what is measured, on which models, at which sizes."""

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
    """Benchmark that `ral-evaluate` asks instead of the held-out questions. Needs data=files: `data` sets the size of
    pictures and frames, and the system turn."""

    name: Annotated[str, NameIn(BENCHMARKS)] | None
    """Name of the benchmark. null: the held-out questions."""
    folder: str | None
    """Folder with the files of the benchmark as released."""
    limit: Positive | None
    """Ask at most this many questions, spread evenly over the categories. A pair is never split, so there may be one
    more. null: all."""

    def problems(self) -> Iterator[str]:
        """Refuse a benchmark without its files, and a limit without a benchmark."""
        path = "evaluation.benchmark"
        if (self.name is None) != (self.folder is None):
            yield (f"{path}.name={self.name} and {path}.folder={self.folder} go together; set both, or both to null")
        if self.name is None:
            yield from without_effect(self, path, f"{path}.name=null", "set name and folder", "limit")


class HeldOutConfig(Group):
    """Held-out questions."""

    questions: Positive
    """Number of held-out questions in `ral-evaluate`, and in training before and after RL."""


class EvaluationConfig(HeldOutConfig):
    """Held-out evaluation during training, with greedy answers to all question kinds."""

    stage_questions: Positive
    """Number of questions in evaluations during a supervised stage."""
    every: NonNegative
    """Number of RL steps between evaluations. 0 evaluates only before and after RL."""
    every_questions: Positive
    """Number of questions in evaluations during RL."""
    blind: bool
    """Also ask every question with black pictures and frames, before, during and after RL. This doubles the number of
    answers. `ral-evaluate` also asks with the pictures of another question, which triples it."""

    def problems(self) -> Iterator[str]:
        """Refuse the number of questions of evaluations that do not take place."""
        if self.every == 0:
            path = "evaluation"
            yield from without_effect(self, path, f"{path}.every=0", f"raise {path}.every", "every_questions")


class MeasurementConfig(HeldOutConfig):
    """Questions that `ral-evaluate` asks a model, and measurements on its answers."""

    attention_questions: NonNegative
    """Number of held-out questions for which `ral-evaluate` measures where the answers look, and the visual attention
    score. 0: none."""
    samples: Positive
    """Number of answers per question. A single answer is greedy; several are sampled at `rollout.temperature`, and the
    score is their mean."""
    saliency: bool
    """Also measure how well attention agrees with the gradients of the answers, for `attention_questions` questions.
    This takes a backward pass per answer."""
    blind: bool
    """Also ask every question with black pictures and frames, and with the pictures of another question, and report how
    much of each figure remains. This triples the number of answers."""
    attended: Annotated[float, Field(gt=0, lt=1)] | None
    """Test whether the answers use the visual tokens that they look at. Take this share of the visual tokens, those
    with the most attention. Ask once with everything else black and once with only these black, and repeat both with as
    many random tokens. This makes five times as many answers. null: off."""
    benchmark: BenchmarkConfig
    """Benchmark to ask instead of held-out questions."""

    def problems(self) -> Iterator[str]:
        """Refuse to compare gradients with attention that is not measured."""
        value = "evaluation.saliency=true"
        if self.saliency and self.attention_questions == 0:
            yield f"{value} has no effect with evaluation.attention_questions=0; raise it, or set saliency to false"
        if self.saliency and self.benchmark.name is not None:
            because = f"evaluation.benchmark.name={self.benchmark.name}"
            yield f"{value} has no effect with {because}: it is of held-out questions; set it to false"


class InterventionConfig(Group):
    """Steering of a model's attention in `ral-evaluate`, without training (AVAR 2.2), compared with the same model
    without steering. It is off if `image` and `system` are 0."""

    image: NonNegativeFloat
    """Increase of the attention on visual tokens (the paper: 0.15)."""
    system: Annotated[float, Field(ge=0, lt=1)]
    """Decrease of the attention on the system turn (the paper: 0 to 0.6)."""
    space: Space
    """Where the change is made. weights: in the attention weights, after which each row is renormalised. logits: in the
    logits before the softmax, as the paper's formula is written."""
    layers: Literal["all"] | Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    """Layers to steer, by index from 0."""
    heads: Literal["all"] | Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    """Heads to steer, by index from 0."""

    @property
    def active(self) -> bool:
        """Whether attention is changed."""
        return self.image > 0 or self.system > 0

    def problems(self) -> Iterator[str]:
        """Refuse settings of steering that is off."""
        if not self.active:
            reason = "intervention.image=0 and intervention.system=0"
            yield from without_effect(self, "intervention", reason, "raise one", "space", "layers", "heads")


class SweepConfig(Group):
    """`ral-evaluate` at several sizes of pictures or videos, for several models: how much each model gains from seeing
    more."""

    axis: SweepAxis | None
    """Quantity that varies. visual_tokens: the largest number per picture, or the cells of a board of visual search, a
    square number, with `data.objects` of them filled as far as they fit. frames: the largest number per video. null: no
    sweep."""
    values: tuple[Positive, ...]
    """Values of the axis."""
    models: dict[str, str]
    """Folders of the models to compare, by the names that the table and the chart show. Empty: only `start_model`."""

    def problems(self) -> Iterator[str]:
        """Refuse incomplete sweeps, and frame counts that models cannot process."""
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
    """Check that a sweep is not combined with blind questions, parts of pictures, or gradients."""
    if sweep.axis is None:
        return
    if evaluation.blind:
        yield f"evaluation.blind=true has no effect with sweep.axis={sweep.axis}; set one of them to false or null"
    if evaluation.saliency:
        yield f"evaluation.saliency=true has no effect with sweep.axis={sweep.axis}; set one of them to false or null"
    if evaluation.attended is not None:
        value = f"evaluation.attended={evaluation.attended:g}"
        yield f"{value} has no effect with sweep.axis={sweep.axis}; set one of them to null"
