"""Videos that come as folders of pictures, one per frame."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av

from ral_system.errors import DataError
from ral_system.media.images import ImageLimits, decode_image

_MAX_FRAMES = 100_000


def video_of(folder: Path, frames_per_s: float) -> bytes:
    """Join the folder's JPEG files, in the order of their names, into a video without encoding them again.

    Always the same bytes. Raises DataError for a folder without any, or with too many, and for a first
    picture that cannot be decoded.
    """
    frames = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg"))
    if not frames or len(frames) > _MAX_FRAMES:
        raise DataError(f"{folder.name}: a folder of {len(frames)} JPEG files, not of 1 to {_MAX_FRAMES:,}")
    first = decode_image(frames[0].read_bytes(), ImageLimits())
    rate = Fraction(frames_per_s).limit_denominator(1000)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_mux_stream("mjpeg", rate=rate, width=first.width, height=first.height)
        stream.time_base = 1 / rate
        for number, file in enumerate(frames):
            packet = av.Packet(file.read_bytes())
            packet.stream, packet.time_base = stream, 1 / rate
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            container.mux(packet)
    return buffer.getvalue()
