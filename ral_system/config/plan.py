"""The `plan` group: assumptions of `ral-plan`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ral_system.config.base import Group, Positive, PositiveFloat

Share = Annotated[float, Field(gt=0, le=1)]


class PlanConfig(Group):
    """Hardware and workload that a plan assumes."""

    device: Literal["h100", "h200", "a100", "cpu"] | None
    """Device: H100 with 80 GB, H200 with 141 GB or A100 with 80 GB, all SXM. cpu is this machine, whose speed is
    measured. null: h100, or cpu if `cluster` gives no role a GPU."""
    gpu_gib: PositiveFloat | None
    """Memory of a GPU, for one that `device` does not name; speeds are those of `device`. null: that of `device`. Not
    used for cpu."""
    medium: Literal["image", "video", "none"] | None
    """Medium in every prompt, as large as `data` allows. null: image or video, whichever takes more tokens."""
    text_tokens: Positive
    """Number of tokens of a prompt without its media."""
    response_tokens: Positive | None
    """Mean number of tokens of a response. null: as many as `rollout` allows."""
    compute: Share
    """Share of the device's peak floating-point rate that forward and backward passes reach. Not used for cpu."""
    bandwidth: Share
    """Share of the device's memory bandwidth that decoding reaches. Not used for cpu."""
    node_gpus: Positive
    """GPUs per node, which the processes fill one after another. Not used for cpu."""
    host_gib: PositiveFloat | None
    """Host memory of a node. null: for each of its GPUs an eighth of what the smallest node with eight has at AWS,
    Azure and Google: 1,740 GiB with H100, 1,850 with H200, 1,150 with A100. For a pod give its memory limit without
    the size of /dev/shm. Not used for cpu, which is this machine with its memory."""
    host_cores: PositiveFloat | None
    """CPU cores of a node. A run that reserves more on one is refused. null: not compared. Not used for cpu."""
