"""Pictures and videos of the report, with or without the attention of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ral_system.errors import RalError
from ral_system.report.overlay import overlay_frames
from ral_system.report.page import frame_strip, picture, seconds
from ral_system.types import Clip, Media

FramesOf = Callable[[Media], np.ndarray]
"""A medium's frames as the model sees them, uint8 [frames, height, width, 3]; of a picture one. Raises RalError for one
that is not available."""

SHOWN_STEPS = 8
"""Time steps of a video to show; a model merges a few frames into one."""
_PICTURE_PX, _FRAME_PX = 168, 84  # the longer side is drawn at about this size


class ReportMedia:
    """Media in a run's `folder`, at report size. Without `frames_of` pictures are read as plain files, and videos are
    not read.
    """

    def __init__(self, folder: Path, frames_of: FramesOf | None = None) -> None:
        self._folder, self._frames_of = folder, frames_of
        self._loaded: dict[Media, list[Image.Image] | None] = {}

    def plain(self, medium: Media) -> str:
        """Draw the medium as HTML; for a video, the first frame of each shown step with its time."""
        frames = self._frames(medium)
        if frames is None:
            return _missing(medium)
        if medium.clip is None:
            return picture(frames[0], "picture", "the picture")
        return frame_strip(zip(frames, _times(medium.clip), strict=True), "picture", "video", _note(medium.clip))

    def overlaid(self, medium: Media, mass: np.ndarray, peak: float) -> str:
        """Draw `mass` [steps, h, w], relative to `peak`, over a medium; for a video also the share of each step.

        Raises ValueError if the mass does not fit the medium.
        """
        alt, frames = "attention of the answer", self._frames(medium)
        if frames is None:
            return _missing(medium)
        if medium.clip is None:
            return picture(overlay_frames(frames, mass, peak)[0], "overlay", alt)
        if len(mass) != _total(medium.clip):
            raise ValueError(f"mass must have {_total(medium.clip)} steps, got {mass.shape}")
        shown = mass[_shown(medium.clip)]
        shares = np.nansum(shown, axis=(1, 2))
        captions = [f"{time} · {share:.1%}" for time, share in zip(_times(medium.clip), shares, strict=True)]
        drawn = zip(overlay_frames(frames, shown, peak), captions, strict=True)
        return frame_strip(drawn, "overlay", alt, _note(medium.clip))

    def _frames(self, medium: Media) -> list[Image.Image] | None:
        """Return the picture, or the shown frames of a video; None if they are not available."""
        if medium not in self._loaded:
            self._loaded[medium] = self._load(medium)
        return self._loaded[medium]

    def _load(self, medium: Media) -> list[Image.Image] | None:
        if not re.fullmatch(r"[0-9a-f]+", medium.digest):
            return None
        try:
            if self._frames_of is None and medium.clip is None:
                with Image.open(self._folder / medium.digest[:2] / f"{medium.digest}.image") as file:
                    return [_sized(file.convert("RGB"), _PICTURE_PX)]
            if self._frames_of is None:
                return None
            if medium.clip is None:
                return [_sized(Image.fromarray(self._frames_of(medium)[0]), _PICTURE_PX)]
            frames = self._frames_of(medium)[:: medium.clip.sampling.step]
            return [_sized(Image.fromarray(frames[step]), _FRAME_PX) for step in _shown(medium.clip)]
        except (OSError, RalError):
            return None


def _sized(image: Image.Image, shown_px: int) -> Image.Image:
    """Enlarge small pictures by whole factors, so cells stay sharp, and reduce large ones."""
    longer = max(image.size)
    if longer > 2 * shown_px:
        image.thumbnail((2 * shown_px, 2 * shown_px))
        return image
    factor = max(1, round(shown_px / longer))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _total(clip: Clip) -> int:
    """Return the number of time steps."""
    return -(-len(clip.times_s) // clip.sampling.step)


def _shown(clip: Clip) -> list[int]:
    """Choose all steps, or as many as there is room for, evenly spaced and including the first and the last."""
    total = _total(clip)
    return [round(step) for step in np.linspace(0, total - 1, min(total, SHOWN_STEPS)).tolist()]


def _times(clip: Clip) -> Sequence[str]:
    return [seconds(clip.times_s[step * clip.sampling.step]) for step in _shown(clip)]


def _note(clip: Clip) -> str:
    return f"{SHOWN_STEPS} of {_total(clip)} time steps" if _total(clip) > SHOWN_STEPS else ""


def _missing(medium: Media) -> str:
    return f'<span class="missing">{"picture" if medium.clip is None else "video"} not in the store</span>'
