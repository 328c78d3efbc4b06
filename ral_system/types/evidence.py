"""Where the answer to a question is to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ral_system.types.media import Media

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, as fractions of a medium's width and height."""


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of one of a prompt's media, in fractions of its width and height, never in pixels.

    Example: the upper right quarter of a video's frames from 3.0 s on until before 4.0 s,
    `Region(left=0.5, top=0.0, right=1.0, bottom=0.5, start_s=3.0, end_s=4.0)`
    """

    left: float
    top: float
    right: float
    bottom: float
    medium: int = 0
    """Index among the prompt's media."""
    start_s: float | None = None
    """Time in a video, from its first frame on; None: from the start."""
    end_s: float | None = None
    """End of that time, itself left out; None: to the end."""

    def __post_init__(self) -> None:
        """Raise ValueError that names the field, for a rectangle or a time that is not one."""
        for side in ("left", "top", "right", "bottom"):
            if not 0 <= (value := getattr(self, side)) <= 1:
                raise ValueError(f"{side}={value}: not in [0, 1]; give fractions of the medium's width and height")
        for low, high in (("left", "right"), ("top", "bottom"), ("start_s", "end_s")):
            first, last = getattr(self, low), getattr(self, high)
            if first is not None and last is not None and not first < last:
                raise ValueError(f"{high}={last}: not above {low}={first}; swap or correct them")
        if self.start_s is not None and not self.start_s >= 0:
            raise ValueError(f"start_s={self.start_s}: before the video's first frame; give seconds from there on")

    @property
    def box(self) -> Box:
        """Its edges."""
        return self.left, self.top, self.right, self.bottom

    def holds(self, time_s: float | None) -> bool:
        """Return whether it is about this time of its medium; None: about the only picture."""
        after = self.start_s is None or (time_s is not None and time_s >= self.start_s)
        return after and (self.end_s is None or (time_s is not None and time_s < self.end_s))


def check_evidence(evidence: Sequence[Region], media: Sequence[Media]) -> None:
    """Raise ValueError that names the field, for a region of a medium that is not there, or seconds of a picture."""
    for at, region in enumerate(evidence):
        if not 0 <= region.medium < len(media):
            raise ValueError(
                f"evidence[{at}].medium={region.medium}: the prompt has {len(media)} media, counted from 0"
            )
        timed = next((f.name for f in fields(region)[-2:] if getattr(region, f.name) is not None), None)
        if timed and media[region.medium].clip is None:
            raise ValueError(f"evidence[{at}].{timed}={getattr(region, timed)}: a picture has no seconds; remove it")
