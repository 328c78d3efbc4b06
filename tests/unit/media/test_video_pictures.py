"""The pictures of a video: upright, of the size and colours that were meant, each of its own time."""

import io
import re
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ral_system.errors import DataError
from ral_system.media.videos import VideoLimits, decode_video
from ral_system.types import VideoSampling
from tests.unit.media.video_files import (
    LIMITS,
    PAPER,
    encode,
    numbered,
    numbers,
    quarters,
)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_video_is_upright(degrees: int, mirrored: bool) -> None:
    """The angle is counter-clockwise; mirroring left and right comes after it."""
    video = encode([quarters()] * 4, turn=(degrees, mirrored, False))
    asked: list[tuple[int, int]] = []

    def twice_as_wide(width: int, height: int) -> tuple[int, int]:
        asked.append((width, height))
        return width * 2, height

    frames, outline = decode_video(video, PAPER, LIMITS, twice_as_wide)
    expected = np.rot90(quarters(), degrees // 90)
    expected = (expected[:, ::-1] if mirrored else expected).repeat(2, axis=1)
    height, width = expected.shape[0], expected.shape[1] // 2
    assert asked == [(width, height)] and (outline.width_px, outline.height_px) == (width, height)
    assert frames.shape == (4, *expected.shape)
    corners = np.ix_([2, -3], [4, -5])
    for frame in frames:
        assert np.abs(frame[corners].astype(int) - expected[corners]).max() < 8


def test_a_camera_s_orientation_in_its_pictures() -> None:
    exif, jpeg, buffer = Image.Exif(), io.BytesIO(), io.BytesIO()
    exif[0x0112] = 6  # to be shown a quarter clockwise
    Image.fromarray(quarters()).save(jpeg, "JPEG", exif=exif, quality=100)
    with av.open(buffer, "w", format="avi") as file:
        stream: Any = file.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p"
        for index in range(4):
            packet: Any = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, index, index, True
            file.mux(packet)
    frames, _ = decode_video(buffer.getvalue(), PAPER, LIMITS)
    corners = np.ix_([2, -3], [2, -3])
    assert np.abs(frames[0][corners].astype(int) - np.rot90(quarters(), -1)[corners]).max() < 8


def test_frames_are_resized_as_pictures_are() -> None:
    x, y = np.meshgrid(np.linspace(0, 255, 96), np.linspace(0, 255, 54))
    picture = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    video = encode([picture] * 4, "matroska", "ffv1", pixels="bgr0")
    whole, outline = decode_video(video, PAPER, LIMITS)
    assert (whole == picture).all()
    small, small_outline = decode_video(video, PAPER, LIMITS, lambda width, height: (28, 14))
    assert small.shape == (4, 14, 28, 3) and small_outline == outline
    assert (small == np.asarray(Image.fromarray(picture).resize((28, 14), Image.Resampling.BICUBIC))).all()


@pytest.mark.parametrize(
    "container, codec, pixels",
    [
        ("mp4", "libx264", "yuv420p10le"),
        ("mp4", "libx265", "yuv422p12le"),
        ("mp4", "libx264", "yuv444p"),
        ("matroska", "ffv1", "gray"),
        ("matroska", "ffv1", "gray16le"),
        ("matroska", "ffv1", "gbrp16le"),
        ("mov", "prores_ks", "yuv422p10le"),
        ("avi", "rawvideo", "bgr24"),
    ],
)
def test_depths_and_layouts(container: str, codec: str, pixels: str) -> None:
    frames, _ = decode_video(encode([quarters()] * 4, container, codec, pixels=pixels), PAPER, LIMITS)
    corners = np.ix_([4, -5], [4, -5])
    assert all(np.abs(frame[corners].astype(int) - quarters()[corners]).max() < 8 for frame in frames)


def test_odd_sides() -> None:
    for container, codec, pixels in (("mp4", "libx264", "yuv444p"), ("webm", "libvpx-vp9", "yuv420p")):
        video = encode([numbered(i, 81, 17) for i in range(8)], container, codec, pixels=pixels)
        found, outline = numbers(video)
        assert found == [0, 2, 5, 7] and (outline.width_px, outline.height_px) == (81, 17)


def test_alpha_is_ignored() -> None:
    clear = np.concatenate([quarters(), np.zeros((32, 64, 1), np.uint8)], axis=-1)
    frames, _ = decode_video(encode([clear] * 4, "mov", "png", pixels="rgba"), PAPER, LIMITS)
    assert (frames == quarters()).all()


@pytest.mark.parametrize(
    "matrix, red", [("bt709", (63, 102, 240)), ("smpte170m", (81, 90, 240)), ("bt2020nc", (74, 97, 240))]
)
def test_colours_are_those_that_were_meant(matrix: str, red: tuple[int, int, int]) -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("libx264", rate=30, options={"qp": "0", "x264-params": f"colormatrix={matrix}"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame(32, 32, "yuv420p")
        for plane, level in zip(frame.planes, red, strict=True):
            plane.update(bytes([level]) * plane.buffer_size)
        for index in range(2):
            frame.pts = index
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    frames, _ = decode_video(buffer.getvalue(), PAPER, LIMITS)
    assert np.abs(frames.astype(int) - [255, 0, 0]).max() <= 3


def test_a_size_that_changes_takes_the_first() -> None:
    options = {"bf": "0"}
    video = encode([numbered(i) for i in range(30)], "mpegts", options=options)
    video += encode([numbered(i, 160, 32) for i in range(30, 60)], "mpegts", options=options, first=30)
    found, outline = numbers(video, VideoSampling(3, 128, 4))
    assert found == [0, 12, 24, 35, 47, 59] and (outline.width_px, outline.height_px) == (80, 16)
    for area, reason in ((5000, "too large: 160x32 px"), (2000, r"damaged: the frame at 1\.\d+ s cannot be decoded")):
        with pytest.raises(DataError, match=reason):
            decode_video(video, PAPER, VideoLimits(max_area_px=area))


def test_a_frame_does_not_serve_twice() -> None:
    video = encode([numbered(i) for i in range(8)], "matroska", "mjpeg", pixels="yuvj420p")
    begins = [found.start() for found in re.finditer(b"\xff\xd8\xff", video)]
    assert len(begins) == 8
    damaged = video[: begins[3]] + bytes(200) + video[begins[3] + 200 :]
    assert numbers(damaged)[0] == [0, 2, 5, 7]
    with pytest.raises(DataError, match=r"damaged: the frame at 0.1\d* s cannot be decoded"):
        decode_video(damaged, VideoSampling(30, 8, 8), LIMITS)
