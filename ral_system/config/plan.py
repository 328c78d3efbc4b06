"""The `plan` group: what `ral-plan` reckons with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ral_system.config.base import Group, Positive, PositiveFloat

Share = Annotated[float, Field(gt=0, le=1)]


class PlanConfig(Group):
    """What a plan is made for, and what it cannot know."""

    device: Literal["h100", "h200", "a100", "cpu"] | None
    """H100 with 80 GB, H200 with 141 GB and A100 with 80 GB, all SXM; cpu is this machine, whose speed is measured.
    null: h100, or cpu where `cluster` gives no role a GPU."""
    medium: Literal["image", "video", "none"] | None
    """What every prompt shows, as large as `data` allows; null: the kind that takes more tokens."""
    text_tokens: Positive
    """Tokens of a prompt without its media."""
    response_tokens: Positive | None
    """Tokens of a response, on average; null: as many as `rollout` allows."""
    compute: Share
    """Part of the device's peak rate of products that passes reach. Not read for cpu."""
    bandwidth: Share
    """Part of the speed of the device's memory that decoding reaches. Not read for cpu."""
    node_gpus: Positive
    """GPUs of a node, which the processes fill one after another. Not read for cpu."""
    host_gib: PositiveFloat | None
    """Host memory of a node. null: for each of its GPUs an eighth of what the smallest of AWS', Azure's and Google's
    nodes with eight has: 1,740 GiB with H100, 1,850 with H200, 1,150 with A100. Not read for cpu, which is this
    machine with its memory."""
