"""Videos as they come: each frame shows its number, so that what was sampled is known exactly; the rest is a reason."""

import functools
import io
import math
import os
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from ral_system.errors import DataError
from ral_system.media import videos
from ral_system.media.videos import VideoLimits, VideoOutline, decode_video, sample_count, sample_times
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


# Which frames


def test_ten_seconds_at_thirty_frames_a_second() -> None:
    found, outline = numbers(clip())
    # one a second: ten, 299/9 = 33.2 frames apart
    assert found == [0, 33, 66, 100, 133, 166, 199, 233, 266, 299]
    assert outline.times_s == pytest.approx([index / 30 for index in found])
    assert (outline.width_px, outline.height_px, outline.duration_s) == (80, 16, pytest.approx(10.0))


@pytest.mark.parametrize(
    "container, codec",
    [
        ("mp4", "libx265"),
        ("matroska", "libx264"),
        ("mpegts", "libx264"),
        ("flv", "libx264"),
        ("avi", "libx264"),  # tells the order of decoding alone
        ("avi", "mpeg4"),
        ("webm", "libvpx-vp9"),
        ("webm", "libvpx"),
        ("mpeg", "mpeg2video"),
    ],
)
def test_every_container_gives_the_same_frames(container: str, codec: str) -> None:
    found, outline = numbers(clip(120, container, codec))
    assert found == [0, 40, 79, 119]
    assert outline.times_s == pytest.approx([index / 30 for index in found], abs=0.0011)
    assert outline.duration_s == pytest.approx(4.0, abs=0.0011)


def test_fragments_and_an_index_in_front() -> None:
    for movflags in ("frag_keyframe+empty_moov", "frag_keyframe+empty_moov+default_base_moof"):
        assert numbers(clip(120, movflags=movflags)) == numbers(clip(120))


@pytest.mark.parametrize("rate", [7, 24, 25, 30])
@pytest.mark.parametrize("container, codec", [("mp4", "libx264"), ("webm", "libvpx-vp9")])
@pytest.mark.parametrize("fps, most, least, step", [(1, 128, 4, 2), (2, 9, 1, 2), (5.5, 128, 4, 2), (50, 500, 4, 3)])
def test_sampling_is_the_rule_of_qwen(
    rate: int, container: str, codec: str, fps: float, most: int, least: int, step: int
) -> None:
    total, sampling = 48, VideoSampling(fps, most, least, step)
    found, outline = numbers(clip(total, container, codec, rate), sampling)
    count = smart_nframes(total / rate, total, sampling)
    assert found == np.linspace(0, total - 1, count).round().astype(int).tolist()
    assert outline.times_s == pytest.approx([index / rate for index in found], abs=0.0011)


def test_counts() -> None:
    assert sample_count(10.0, 300, PAPER) == 10
    assert sample_count(11.9, 357, PAPER) == 10  # down to a multiple of two
    assert sample_count(9.9997, 240, PAPER) == 10  # a clock in milliseconds
    assert sample_count(1.0, 30, PAPER) == 4  # at least
    assert sample_count(1.0, 3, PAPER) == 2  # of three there are
    assert sample_count(0.0, 1, PAPER) == 2  # to be repeated
    assert sample_count(3600.0, 108_000, PAPER) == 128  # at most
    assert sample_count(10.0, 300, VideoSampling(1, 127, 3, step=4)) == 8
    for total in range(2, 400, 7):
        for rate in (1, 12.5, 24, 30, 60):
            for sampling in (PAPER, VideoSampling(2, 768, 4), VideoSampling(0.2, 10, 7), VideoSampling(30, 30, 2, 1)):
                expected = smart_nframes(round(total / rate, 2), total, sampling)
                assert sample_count(total / rate, total, sampling) == expected, (total, rate, sampling)


def test_fewer_frames_than_a_step_repeat_the_last() -> None:
    for total, step, expected in [(1, 2, [0, 0]), (2, 2, [0, 1]), (3, 2, [0, 2]), (3, 4, [0, 1, 2, 2]), (1, 1, [0])]:
        found, outline = numbers(clip(total), VideoSampling(1, 128, 1, step))
        assert found == expected
        assert outline.times_s == pytest.approx([index / 30 for index in expected])


@pytest.mark.parametrize("container, codec", [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("matroska", "mpeg4")])
def test_a_variable_rate_is_sampled_by_time(container: str, codec: str) -> None:
    # thirty frames in the first second, then one a second, then a burst: most frames show the least time
    times_ms = [*range(0, 990, 33), *range(1500, 9000, 1000), *range(9010, 9050, 10)]
    video = encode([numbered(i) for i in range(len(times_ms))], container, codec, times_ms=times_ms)
    for sampling in (PAPER, VideoSampling(2, 128, 4), VideoSampling(0.5, 128, 2)):
        found, outline = numbers(video, sampling)
        count = smart_nframes((9040 + 33) / 1000, len(times_ms), sampling)
        even = [9040 * k / (count - 1) for k in range(count)]
        assert found == [min(range(len(times_ms)), key=lambda i: abs(times_ms[i] - t)) for t in even]
        assert outline.times_s == pytest.approx([times_ms[i] / 1000 for i in found], abs=0.0011)


def test_evenly_spaced_times_pick_the_nearest_frames() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        shown = np.unique(random.integers(0, 1000, random.integers(2, 40)))
        count = int(random.integers(1, len(shown) + 1))
        found = sample_times(shown, count)
        if np.abs(shown - np.linspace(shown[0], shown[-1], len(shown))).max() > 1:
            for time, even in zip(found, np.linspace(shown[0], shown[-1], count), strict=True):
                assert abs(time - even) == np.abs(shown - even).min()


def test_clocks_that_are_rounded_do_not_change_the_rule() -> None:
    for rate in (23.976, 24, 25, 29.97, 30, 59.94):
        for total in (997, 3000, 5003):
            shown = (np.arange(total) * 1000 / rate).round().astype(int)
            found = sample_times(shown, 128)
            assert (found == shown[np.linspace(0, total - 1, 128).round().astype(int)]).all()


def test_durations_that_lie_change_nothing() -> None:
    mp4, mkv, expected = bytearray(clip(120)), bytearray(clip(120, "matroska")), numbers(clip(120))[0]
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        at = mp4.find(box) + offset
        mp4[at : at + 4] = struct.pack(">I", 7)
    assert numbers(bytes(mp4))[0] == expected
    at = mkv.find(b"\x44\x89\x88")  # Duration, eight bytes
    for lie in (0.0, 1e9, math.nan, -1.0):
        mkv[at + 3 : at + 11] = struct.pack(">d", lie)
        found, outline = numbers(bytes(mkv))
        assert found == expected and outline.duration_s == pytest.approx(4.0, abs=0.0011)


def edited(video: bytes, hidden: int, duration: int) -> bytes:
    """An mp4 of which `hidden` frames at the beginning are left out, and what follows after `duration` ms."""
    at = video.find(b"elst") + 12
    (start,) = struct.unpack(">i", video[at + 4 : at + 8])
    return video[:at] + struct.pack(">Ii", duration, start + hidden * 512) + video[at + 8 :]  # a frame: 512/15360 s


def test_an_edit_list_hides_the_beginning() -> None:
    found, outline = numbers(edited(clip(120), 5, 4000))
    assert found == [5, 43, 81, 119]
    assert outline.times_s == pytest.approx([(index - 5) / 30 for index in found])


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


def test_a_recording_begins_with_its_first_keyframe() -> None:
    found, outline = numbers(remuxed(clip(120), lambda index: index >= 7))
    assert found == [30, 60, 89, 119]
    assert outline.times_s[0] == 0.0


# Only what is needed is decoded


def decode_everything(monkeypatch: pytest.MonkeyPatch, source: bytes, sampling: VideoSampling) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(videos._Timeline, "stretches_of", lambda timeline, times: None)
        return decode_video(source, sampling, LIMITS)


@pytest.mark.parametrize(
    "codec, options",
    [
        ("libx264", {}),
        ("libx264", {"x264-params": "open-gop=1:scenecut=0", "b_strategy": "0"}),
        ("libx265", {}),
        ("mpeg4", {}),
        ("libvpx-vp9", {"g": "20"}),
    ],
)
def test_frames_that_no_sampled_one_needs_are_skipped(
    codec: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    video = encode([numbered(i) for i in range(180)], "matroska", codec, options=options)
    counts: list[int] = []
    decode = videos._decode

    def counting(*arguments: Any) -> Any:
        counts.append(0)
        for each in decode(*arguments):
            counts[-1] += 1
            yield each

    monkeypatch.setattr(videos, "_decode", counting)
    for most in (2, 4):  # frames 0 and 179; then 60 and 119 as well, the last of a piece
        counts.clear()
        sampling = VideoSampling(1, most, 2)
        frames, outline = decode_video(video, sampling, LIMITS)
        assert len(counts) == 1 and counts[0] < 70  # of 180
        whole, whole_outline = decode_everything(monkeypatch, video, sampling)
        assert (frames == whole).all() and outline == whole_outline


def test_keyframes_that_are_none_are_seen_through(monkeypatch: pytest.MonkeyPatch) -> None:
    video = encode([numbered(i) for i in range(120)], "mp4", "mpeg4", options={"bf": "0", "g": "60"})
    every = video.replace(b"stss", b"free")  # without its list of keyframes every frame counts as one
    with av.open(io.BytesIO(every)) as file:
        assert all(packet.is_keyframe for packet in file.demux(video=0) if packet.size)
    frames, outline = decode_video(every, PAPER, LIMITS)
    assert [number(frame) for frame in frames] == [0, 40, 79, 119]
    assert (frames == decode_everything(monkeypatch, video, PAPER)[0]).all()
    assert outline == decode_video(video, PAPER, LIMITS)[1]


def test_one_thread_decodes() -> None:
    before = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    during: list[int] = []

    def size(width: int, height: int) -> tuple[int, int]:
        during.append(len(os.listdir("/proc/self/task")))  # noqa: PTH208
        return width, height

    pictures = [numbered(i, 160, 160) for i in range(4)]  # high enough to be cut into slices
    for container, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9"), ("mp4", "libx265")):
        decode_video(encode(pictures, container, codec), PAPER, LIMITS, size)
    assert len(during) == 3 and max(during) <= before


def test_many_can_decode_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert all(found == numbers(clip(120)) for found in pool.map(numbers, [clip(120)] * 8))


# Pixels


def quarters(width: int = 64, height: int = 32) -> np.ndarray:
    """Four corners, four greys."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = 250, 170
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = 85, 10
    return picture


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


# What is refused


def audio(container: str, cover: bool = False) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        sound: Any = file.add_stream("aac", rate=8000)
        if cover:
            picture: Any = file.add_stream("png", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 32, "rgb24"
            picture.disposition = Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, 0
        file.mux(sound.encode(frame))
        if cover:
            file.mux(picture.encode(av.VideoFrame.from_ndarray(quarters(), format="rgb24")))
            file.mux(picture.encode())
        file.mux(sound.encode())
    return buffer.getvalue()


def picture_file(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(quarters()).save(buffer, kind, **options)
    return buffer.getvalue()


def raw_avi(width: int, height: int) -> bytes:
    """An uncompressed video that declares another size."""
    video = bytearray(encode([quarters()], "avi", "rawvideo", pixels="bgr24"))
    at = video.find(b"strf") + 12
    video[at : at + 8] = struct.pack("<ii", width, height)
    return bytes(video)


def flipped(video: bytes, start: float, stop: float) -> bytes:
    """With the bits of a part of it inverted."""
    low, high = int(len(video) * start), int(len(video) * stop)
    return video[:low] + bytes(byte ^ 255 for byte in video[low:high]) + video[high:]


def front(video: bytes) -> bytes:
    """An mp4 with its index before its frames."""
    boxes, at = {}, 0
    while at < len(video):
        (length,) = struct.unpack(">I", video[at : at + 4])
        boxes[video[at + 4 : at + 8]] = video[at : at + length]
        at += length
    moov = bytearray(boxes[b"moov"])
    at = moov.find(b"stco") + 12
    (count,) = struct.unpack(">I", moov[at - 4 : at])
    for offset in range(at, at + 4 * count, 4):
        (chunk,) = struct.unpack(">I", moov[offset : offset + 4])
        moov[offset : offset + 4] = struct.pack(">I", chunk + len(moov))
    return boxes[b"ftyp"] + bytes(moov) + boxes.get(b"free", b"") + boxes[b"mdat"]


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"<html>404</html>" * 99, r"not a video \(it begins with b'<html>40'\)"),
    "zeros": (lambda: bytes(100_000), "not a video"),
    "a picture": (lambda: picture_file("PNG"), "not a video"),
    "an animation": (lambda: picture_file("GIF", save_all=True, append_images=[Image.new("RGB", (64, 32))]), "not a"),
    "sound": (lambda: audio("mp4"), "holds no video stream"),
    "sound with a cover": (lambda: audio("mp4", cover=True), "holds no video stream"),
    "sound alone": (lambda: audio("adts"), "not a video"),
    "half an mp4": (lambda: clip()[: len(clip()) // 2], "cut short or damaged: .*moov atom"),
    "an mp4 cut in a frame": (lambda: front(clip())[:-1000], "cut short: it ends within a frame"),
    "a webm's signature": (lambda: clip(120, "webm", "libvpx-vp9")[:40], "cut short or damaged"),
    "an avi's header": (lambda: clip(120, "avi", "mpeg4")[:400], "cut short or damaged"),
    "everything hidden": (lambda: edited(clip(120), 0, 0), "holds no frames"),
    "no keyframe": (lambda: remuxed(clip(20), lambda index: index > 0), "damaged: the frame at 0.000 s cannot be"),
    "flipped bytes": (lambda: flipped(clip(120, "matroska"), 0.4, 0.7), "damaged: the frame at"),
    "one pixel": (lambda: encode([quarters(1, 1)] * 3, "matroska", "ffv1", pixels="bgr0"), "too small: 1x1 px, at le"),
    "a line": (lambda: encode([quarters(900, 4)] * 3, "avi", "mpeg4"), "too long and thin: 900x4 px, at most 200 to 1"),
    "a large video": (lambda: raw_avi(20_000, 10_000), "too large: 20000x10000 px, at most 36,000,000 px a frame"),
    "a bomb": (lambda: raw_avi(60_000, 60_000), "damaged or too large: the size of its frames is unknown"),
    "no size": (lambda: raw_avi(0, 0), "damaged or too large"),
    "unheard of colours": (
        lambda: encode([quarters()] * 3, options={"x264-params": "colormatrix=YCgCo"}),
        r"its colours cannot be converted \(colour space 8\)",
    ),
    "unknown codec": (lambda: clip(20, "avi", "mpeg4").replace(b"FMP4", b"QQQQ"), "holds no video of a known codec"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_reason(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build, reason = BROKEN[name]
    path = tmp_path / "video.mp4"
    path.write_bytes(build())
    capfd.readouterr()
    for source in (path, path.read_bytes()):
        with pytest.raises(DataError, match=reason) as error:
            decode_video(source, PAPER, LIMITS)
        assert "\n" not in str(error.value) and len(str(error.value)) < 200
    assert capfd.readouterr() == ("", "")


def test_limits() -> None:
    for limits, reason in [
        (VideoLimits(max_area_px=1279), "too large: 80x16 px, at most 1,279 px a frame"),
        (VideoLimits(min_side_px=17), "too small: 80x16 px, at least 17 px a side"),
        (VideoLimits(max_ratio=4.9), "too long and thin: 80x16 px, at most 4.9 to 1"),
        (VideoLimits(max_seconds=9.9), "too long: more than 9.9 s"),
        (VideoLimits(max_coded_frames=299), "too many frames: more than 299"),
    ]:
        with pytest.raises(DataError, match=re.escape(reason)):
            decode_video(clip(), PAPER, limits)
    decode_video(clip(), PAPER, VideoLimits(16, 1280, 5.0, 9.97, 300))


def test_a_time_far_away_is_too_long() -> None:
    video = encode([numbered(i) for i in range(3)], "matroska", "mpeg4", times_ms=[0, 33, 20_000_000])
    with pytest.raises(DataError, match="too long: more than 14400 s"):
        decode_video(video, PAPER, LIMITS)


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:4,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile secret.ts\n",
    "list.sdp": "v=0\ns=a\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>secret.ts</BaseURL></MPD>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_no_other_file_is_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.ts").write_bytes(clip(120, "mpegts"))
    Path(name).write_text(PLAYLISTS[name])
    for also in ("", ",hls,concat,dash,sdp,rtp"):  # not even if such formats were read
        monkeypatch.setattr(videos, "FORMATS", videos.FORMATS + also)
        for source in (Path(name), Path(name).read_bytes()):
            with pytest.raises(DataError, match="not a video"):
                decode_video(source, PAPER, LIMITS)


def test_a_file_s_name_does_not_matter(tmp_path: Path) -> None:
    for name in ("clip", "clip.txt", "clip.png", "clip.m3u8", "clip.avi"):
        (tmp_path / name).write_bytes(clip(120))
        assert numbers(tmp_path / name) == numbers(clip(120))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\)"):
        decode_video(tmp_path / "gone.mp4", PAPER, LIMITS)
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        decode_video(tmp_path, PAPER, LIMITS)


def test_every_prefix_of_a_file_is_a_video_or_a_reason() -> None:
    for container, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("mpegts", "libx264")):
        for whole in (clip(20, container, codec), *([front(clip(20))] if container == "mp4" else [])):
            for end in range(0, len(whole), len(whole) // 40):
                try:
                    frames, outline = decode_video(whole[:end], PAPER, LIMITS)
                except DataError as error:
                    assert re.match("the file is empty|not a video|cut short|damaged|holds no", str(error)), error
                else:
                    assert len(frames) == len(outline.times_s) >= 2


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts", "flv"])
def test_damage_is_a_video_or_a_reason(container: str) -> None:
    random = np.random.default_rng(0)
    whole = np.frombuffer(clip(60, container), np.uint8)
    for damage in [1, 4, 16, 64] * 25:
        damaged = whole.copy()
        damaged[random.integers(0, len(whole), damage)] = random.integers(0, 256, damage)
        try:
            frames, outline = decode_video(damaged.tobytes(), PAPER, LIMITS)
        except DataError as error:
            assert "\n" not in str(error) and len(str(error)) < 200
        else:
            assert len(frames) == len(outline.times_s) and sorted(outline.times_s) == list(outline.times_s)


def test_a_stretch_of_a_video_is_sampled_as_if_it_were_all() -> None:
    """Ten seconds at 12 a second; from 3 to 6 s there are frames 36 to 72."""
    source = clip(120, "mp4", rate=12)
    found, outline = numbers(source, VideoSampling(1, 128, 2, start_s=3.0, end_s=6.0))
    whole, _ = numbers(source, VideoSampling(1, 128, 2))
    assert whole[0] == 0 and whole[-1] == 119
    assert (found[0], found[-1]) == (36, 72) and len(found) == 2
    assert outline.times_s[0] == pytest.approx(3.0, abs=0.01) and outline.duration_s == pytest.approx(37 / 12, abs=0.01)
    last, _ = numbers(source, VideoSampling(2, 128, 2, start_s=8.0))
    assert (last[0], last[-1], len(last)) == (96, 119, 4)
    with pytest.raises(DataError, match="shows nothing from 11 s to its end"):
        numbers(source, VideoSampling(1, 128, 2, start_s=11.0))
