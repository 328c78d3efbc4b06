"""Which frames are sampled, from videos whose frames show their number."""

import io
import math
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import numpy as np
import pytest

from ral_system.errors import DataError
from ral_system.media import videos
from ral_system.media.videos import decode_video, sample_count, sample_times
from ral_system.types import VideoSampling
from tests.unit.media.video_files import (
    LIMITS,
    PAPER,
    clip,
    edited,
    encode,
    number,
    numbered,
    numbers,
    remuxed,
    smart_nframes,
)


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


def test_an_edit_list_hides_the_beginning() -> None:
    found, outline = numbers(edited(clip(120), 5, 4000))
    assert found == [5, 43, 81, 119]
    assert outline.times_s == pytest.approx([(index - 5) / 30 for index in found])


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
