"""The `algorithm.attention.objective` group: one class per attention objective."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ral_system.config.base import Group, NonNegativeFloat, PositiveFloat


class AttentionObjectiveGroup(Group):
    """Base of the objectives' settings."""

    reads_glances: ClassVar[bool] = False
    """Whether it compares where the responses of a group look, instead of rows with their anchor."""

    reads_evidence: ClassVar[bool] = False
    """Whether it compares rows with the place that shows the answer."""

    @property
    def trains_divergence(self) -> bool:
        """Whether the divergence of rows to their anchor has a gradient."""
        return True


class RalObjectiveConfig(AttentionObjectiveGroup):
    """RAL: the divergence of every row to its anchor, multiplied by the advantage of the response (the paper)."""

    name: Literal["ral"]


class CreditObjectiveConfig(AttentionObjectiveGroup):
    """Credit: the value of a key is the mean advantage of the other responses' glances at it. Each response is trained
    to look at keys of high value."""

    reads_glances: ClassVar[bool] = True
    name: Literal["credit"]
    proximal: NonNegativeFloat
    """Weight, within the objective, of the mean divergence of all rows to their anchor. It limits how far attention
    moves."""

    @property
    def trains_divergence(self) -> bool:
        """Whether rows are held near their anchor."""
        return self.proximal > 0


class GroupAnchorObjectiveConfig(AttentionObjectiveGroup):
    """Group anchor: attention moves towards where the better responses of the group looked, and away from where the
    worse ones looked."""

    reads_glances: ClassVar[bool] = True
    name: Literal["group_anchor"]
    repel: Annotated[float, Field(ge=0, lt=1)]
    """Weight of the worse responses. 0 only imitates the better ones."""

    @property
    def trains_divergence(self) -> bool:
        """Whether the divergence of rows to their anchor has a gradient: no, the targets come from the group."""
        return False


class EvidenceObjectiveConfig(AttentionObjectiveGroup):
    """EASE: in right responses, attention on visual tokens is trained towards the boxes that show the answer."""

    reads_evidence: ClassVar[bool] = True
    name: Literal["evidence"]
    gate: float
    """Smallest reward of a response whose rows are trained."""
    spread: PositiveFloat
    """Standard deviations of the Gaussian on a box, as multiples of its width and height."""
    smoothing: Annotated[float, Field(gt=0, lt=1)]
    """Share of the target that is distributed evenly over the visual tokens."""
    boxes: Literal["own", "other"]
    """own: the prompt's boxes. other, a control: boxes of the same size at other places of the same pictures, drawn
    from the prompt's id."""
    missing: Literal["raise", "skip"]
    """Treatment of prompts without boxes. raise ends the run; skip leaves them out of the objective."""

    @property
    def trains_divergence(self) -> bool:
        """Whether the divergence of rows to their anchor has a gradient: no, the targets are the prompt's boxes."""
        return False


class SharpeningObjectiveConfig(AttentionObjectiveGroup):
    """Sharpening, a control without a target location: attention gets sharper where A > 0 and flatter where A < 0."""

    name: Literal["sharpening"]
    temperature: Annotated[float, Field(gt=0, lt=1)]
    """Exponent of the targets (tau): the anchor's rows to the power 1/tau where A > 0 and tau where A < 0,
    normalised."""

    @property
    def trains_divergence(self) -> bool:
        """Whether the divergence of rows to their anchor has a gradient: no, the targets are powers of the anchor's
        rows."""
        return False


AttentionObjectiveConfig = Annotated[
    RalObjectiveConfig
    | CreditObjectiveConfig
    | GroupAnchorObjectiveConfig
    | EvidenceObjectiveConfig
    | SharpeningObjectiveConfig,
    Field(discriminator="name"),
]
