"""Videos that show the number of each frame, and what was sampled of them."""

import functools
import io
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ral_system.media.videos import VideoLimits, VideoOutline, decode_video
from ral_system.types import VideoSampling

LIMITS = VideoLimits()
PAPER = VideoSampling(fps=1, max_frames=128, min_frames=4)
BITS = 10

CODECS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "bf": "3", "b-pyramid": "normal", "g": "30", "keyint_min": "30"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=30:min-keyint=30:open-gop=1:bframes=3"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx": {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"},  # hidden frames
    "mpeg4": {"bf": "2", "g": "12", "qscale": "2"},
    "mpeg2video": {"bf": "2", "g": "12"},
}


def numbered(index: int, width: int = 80, height: int = 16) -> np.ndarray:
    """Its number in bits from left to right, the least first; white is one."""
    bits = (index >> (np.arange(width) * BITS // width)) & 1
    return np.broadcast_to(bits[None, :, None] * 255, (height, width, 3)).astype(np.uint8)


def number(frame: np.ndarray) -> int:
    height, width, _ = frame.shape
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    return int(((frame[height // 2, centres].mean(-1) > 127) << np.arange(BITS)).sum())


def encode(
    pictures: list[np.ndarray],
    container: str = "mp4",
    codec: str = "libx264",
    rate: Fraction | int = 30,
    times_ms: list[int] | None = None,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    turn: tuple[float, bool, bool] | None = None,
    movflags: str = "",
    first: int = 0,
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options={"movflags": movflags} if movflags else {}) as file:
        stream: Any = file.add_stream(codec, rate=rate, options={**CODECS.get(codec, {}), **(options or {})})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.thread_count = pixels, 1
        if times_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(turn[0], hflip=turn[1], vflip=turn[2])
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
            frame.pts = times_ms[index] if times_ms else first + index
            frame.time_base = Fraction(1, 1000) if times_ms else 1 / Fraction(rate)
            file.mux(stream.encode(frame.reformat(format=pixels)))
        file.mux(stream.encode())
    return buffer.getvalue()


@functools.cache
def clip(total: int = 300, container: str = "mp4", codec: str = "libx264", rate: int = 30, movflags: str = "") -> bytes:
    return encode([numbered(i) for i in range(total)], container, codec, rate, movflags=movflags)


def numbers(source: bytes | Path, sampling: VideoSampling = PAPER) -> tuple[list[int], VideoOutline]:
    frames, outline = decode_video(source, sampling, LIMITS)
    assert frames.dtype == np.uint8 and frames.shape == (len(outline.times_s), outline.height_px, outline.width_px, 3)
    return [number(frame) for frame in frames], outline


def smart_nframes(duration_s: float, total: int, sampling: VideoSampling) -> int:
    """The rule as qwen-vl-utils states it, for at least `step` frames."""
    step = sampling.step
    least, most = math.ceil(sampling.min_frames / step) * step, math.floor(sampling.max_frames / step) * step
    return math.floor(min(min(max(duration_s * sampling.fps, least), most), total) / step) * step


def quarters(width: int = 64, height: int = 32) -> np.ndarray:
    """Four corners, four greys."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = 250, 170
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = 85, 10
    return picture


def edited(video: bytes, hidden: int, duration: int) -> bytes:
    """An mp4 without `hidden` frames at the beginning, and without the rest after `duration` ms."""
    at = video.find(b"elst") + 12
    (start,) = struct.unpack(">i", video[at + 4 : at + 8])
    return video[:at] + struct.pack(">Ii", duration, start + hidden * 512) + video[at + 8 :]  # a frame: 512/15360 s


def remuxed(video: bytes, keep: Callable[[int], bool], container: str = "matroska") -> bytes:
    """The packets whose position is to be kept, not encoded again."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(buffer, "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.size and keep(index):
                packet.stream = stream
                target.mux(packet)
    return buffer.getvalue()
