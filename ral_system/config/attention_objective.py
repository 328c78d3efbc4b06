"""The `algorithm.attention.objective` group: one class for each way to train attention."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ral_system.config.base import Group, NonNegativeFloat, PositiveFloat


class AttentionObjectiveGroup(Group):
    """Base of the objectives' settings."""

    reads_glances: ClassVar[bool] = False
    """Whether it compares where the responses of a group look, and not rows with their anchor."""

    reads_evidence: ClassVar[bool] = False
    """Whether it compares rows with where the answer is to be seen."""

    @property
    def trains_divergence(self) -> bool:
        """Whether the divergence of rows to their anchor has a gradient."""
        return True


class RalObjectiveConfig(AttentionObjectiveGroup):
    """RAL: the divergence of every row to its anchor, times the sequence's advantage (the paper)."""

    name: Literal["ral"]


class CreditObjectiveConfig(AttentionObjectiveGroup):
    """Credit: each key is worth the mean advantage of the other responses' glances at it, and each response is trained
    to look where the others' glances paid."""

    reads_glances: ClassVar[bool] = True
    name: Literal["credit"]
    proximal: NonNegativeFloat
    """Weight, within the objective, of the mean divergence of all rows to their anchor, which sets how far attention
    goes."""

    @property
    def trains_divergence(self) -> bool:
        """Whether rows are held near their anchor."""
        return self.proximal > 0


class GroupAnchorObjectiveConfig(AttentionObjectiveGroup):
    """Group anchor: towards where the better responses of the group looked, away from where the worse ones did."""

    reads_glances: ClassVar[bool] = True
    name: Literal["group_anchor"]
    repel: Annotated[float, Field(ge=0, lt=1)]
    """Weight of the worse responses; 0 imitates the better ones alone."""

    @property
    def trains_divergence(self) -> bool:
        """The anchors are the group's own."""
        return False


class EvidenceObjectiveConfig(AttentionObjectiveGroup):
    """EASE: the rows of right responses, over visual keys, drawn to where the answer is to be seen."""

    reads_evidence: ClassVar[bool] = True
    name: Literal["evidence"]
    gate: float
    """Least reward of the responses whose rows are trained."""
    spread: PositiveFloat
    """Standard deviations of the Gaussian on a box, in widths and heights of the box."""
    smoothing: Annotated[float, Field(gt=0, lt=1)]
    """Share of the target that is spread evenly over the visual keys."""
    boxes: Literal["own", "other"]
    """other, a control: boxes as large as the prompt's own at other places of its pictures, drawn from its id."""
    missing: Literal["raise", "skip"]
    """What to do about prompts that do not say where their answer is to be seen: end the run, or leave them out of the
    objective."""

    @property
    def trains_divergence(self) -> bool:
        """The target is the prompt's own."""
        return False


class SharpeningObjectiveConfig(AttentionObjectiveGroup):
    """Sharpening, a control without a location: rows as sharp as the anchor's to a power, sharper where A > 0."""

    name: Literal["sharpening"]
    temperature: Annotated[float, Field(gt=0, lt=1)]
    """tau: targets are the anchor's rows to the power 1/tau where A > 0, and tau where A < 0, normalised."""

    @property
    def trains_divergence(self) -> bool:
        """The target is another one than the anchor's row."""
        return False


AttentionObjectiveConfig = Annotated[
    RalObjectiveConfig
    | CreditObjectiveConfig
    | GroupAnchorObjectiveConfig
    | EvidenceObjectiveConfig
    | SharpeningObjectiveConfig,
    Field(discriminator="name"),
]
