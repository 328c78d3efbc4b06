"""What is refused, and says why in one line: damage, other media, limits, other files."""

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from ral_system.errors import DataError
from ral_system.media import videos
from ral_system.media.videos import VideoLimits, decode_video
from tests.unit.media.video_files import (
    LIMITS,
    PAPER,
    clip,
    edited,
    encode,
    numbered,
    numbers,
    quarters,
    remuxed,
)


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
    """Invert the bits of a part of a video."""
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
