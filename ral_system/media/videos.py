"""Decoding of videos from outside to sampled RGB frames, or to an error. Sizes are checked before decoding.

A file is read twice. The first pass lists its packets: which frames there are and when each is shown, whatever the
header declares. The second decodes only the pieces (from a keyframe to the next) that hold a sampled frame, each up to
the last of these.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from ral_system.errors import DataError
from ral_system.types import VideoSampling

FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg"
"""What is read, as FFmpeg names it; what a file is called does not matter. Formats that open others are not."""
_SIGNATURES = re.compile(
    rb".{4}ftyp(?!avi[fs]|hei[cx]|mif1)|\x1aE\xdf\xa3|RIFF.{4}AVI |FLV|0&\xb2u|OggS|\0\0\x01\xba|G.{187}G", re.DOTALL
)
_HEAD_BYTES = 189


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """Limits of a video. Sides and ratio as for pictures; the others bound the work for one file."""

    min_side_px: int = 2
    max_area_px: int = 36_000_000
    """Pixels of a frame; 8K has 33 million."""
    max_ratio: float = 200.0
    max_seconds: float = 4 * 3600.0
    """The benchmarks' longest videos last less than three hours."""
    max_coded_frames: int = 1_000_000
    """Four hours at 60 a second are 864,000; more are a bomb of tiny packets."""


@dataclass(frozen=True, slots=True)
class VideoOutline:
    """Facts about a video that a prompt needs. Two of 60 frames: `VideoOutline(640, 360, 2.0, (0.0, 1.967))`."""

    width_px: int
    height_px: int
    """Size of the upright frames before resizing; pixels count as square."""
    duration_s: float
    """Duration of the part that is used, from its first frame to the end of its last one, which lasts as long as the
    video's median frame; 0 for a single frame."""
    times_s: tuple[float, ...]
    """Times of the sampled frames, from the video's first frame on, ascending; a repeated frame repeats its time."""


Size = Callable[[int, int], tuple[int, int]]


def looks_like_video(source: Path | bytes) -> bool:
    """Recognise a video by its first bytes; False for a file that cannot be read."""
    if isinstance(source, bytes):
        return _SIGNATURES.match(source) is not None
    try:
        with source.open("rb") as file:
            return _SIGNATURES.match(file.read(_HEAD_BYTES)) is not None
    except OSError:
        return False


def decode_video(
    source: Path | bytes, sampling: VideoSampling, limits: VideoLimits, size: Size | None = None
) -> tuple[np.ndarray, VideoOutline]:
    """Sampled frames as RGB, uint8 [T, H, W, 3], upright as the display matrix says, without alpha.

    Each is resized (bicubic) to `size(width, height)` px as it is decoded; without `size`, to the first one's size.
    `sample_count` and `sample_times` say which. Decoding takes one thread, so many files can be read at once.

    Raises DataError with a reason: cannot be read, empty, not a video, no video stream, no frames, cut short, damaged,
    too small, too large, too long and thin, too long, too many frames.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            timeline = _read_timeline(file, limits)
            shown = timeline.between(sampling.start_s, sampling.end_s)
            duration_s = timeline.lasting_s(shown)
            times = sample_times(shown, sample_count(duration_s, len(shown), sampling))
            try:
                frames, found, shape = _read_frames(file, limits, timeline, times, timeline.stretches_of(times), size)
            except DataError:  # keyframes may be marked where there are none: decode from the start
                frames, found, shape = _read_frames(file, limits, timeline, times, None, size)
    except av.FFmpegError as error:
        raise DataError(f"damaged: {error.strerror}") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or type(error).__name__})") from None
    times_s = tuple(float((time - timeline.shown[0]) * timeline.tick_s) for time in found)
    return frames, VideoOutline(*shape, duration_s, times_s)


def encode_frames(frames: np.ndarray, fps: int) -> bytes:
    """A video of uint8 [frames, height, width, 3]: FFV1, which loses nothing, in Matroska; always the same bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = "bgr0", 1
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def sample_count(duration_s: float, total: int, sampling: VideoSampling) -> int:
    """Return how many of `total` frames are sampled, by the rule of qwen-vl-utils' `smart_nframes`.

    `duration_s * fps` within the bounds and `total`, down to a multiple of `step`, but `step` at least. Containers
    round their clocks, so a duration counts to a hundredth of a second: 9.9997 s are ten.
    """
    step = sampling.step
    least, most = math.ceil(sampling.min_frames / step) * step, sampling.max_frames // step * step
    wished = math.floor(round(duration_s, 2) * sampling.fps + 1e-6)
    return max(min(max(wished, least), most, total) // step, 1) * step


def sample_times(shown: np.ndarray, count: int) -> np.ndarray:
    """`count` of the ascending times `shown` (in ticks), evenly spaced from the first to the last.

    At a constant rate these are qwen-vl-utils' frames, `linspace(0, total - 1, count)` rounded; at a variable rate the
    frames nearest to `count` evenly spaced times. Fewer frames than `count`: all, and the last again and again.
    """
    total = len(shown)
    if total < count:
        return shown[np.minimum(np.arange(count), total - 1)]
    if np.abs(shown - np.linspace(shown[0], shown[-1], total)).max() <= 1:  # but for rounding to ticks
        return shown[np.linspace(0, total - 1, count).round().astype(int)]
    even = np.linspace(shown[0], shown[-1], count)
    after = np.searchsorted(shown, even).clip(1, total - 1)
    return np.where(even - shown[after - 1] <= shown[after] - even, shown[after - 1], shown[after])


@dataclass(slots=True, eq=False)
class _Stretch:
    """Pieces of a video that are decoded together."""

    first: int
    last: float = -math.inf  # when the last wanted frame of the stretch is shown


@dataclass(frozen=True, slots=True)
class _Timeline:
    """Index of a video from its packets. Times are in ticks, the unit of the stream's clock."""

    shown: np.ndarray  # the frames' times, ascending
    coded: np.ndarray  # the packets' times, in the file's order
    pieces: np.ndarray  # which piece each packet belongs to
    starts: np.ndarray  # and the time of the keyframe this begins with
    tick_s: float
    in_order: bool  # the container says in which order packets are decoded, but not when their frames are shown

    @property
    def gap(self) -> float:
        """Median ticks from frame to frame."""
        return float(np.median(np.diff(self.shown))) if len(self.shown) > 1 else 0.0

    def lasting_s(self, shown: np.ndarray) -> float:
        return float((shown[-1] - shown[0] + self.gap) * self.tick_s)

    def between(self, start_s: float, end_s: float | None) -> np.ndarray:
        """Times of the frames shown from `start_s` to `end_s`."""
        at_s = (self.shown - self.shown[0]) * self.tick_s
        found = self.shown[(at_s >= start_s - self.tick_s) & (at_s <= (math.inf if end_s is None else end_s))]
        if not len(found):
            raise DataError(f"shows nothing from {start_s:g} s to {'its end' if end_s is None else f'{end_s:g} s'}")
        return found

    def stretches_of(self, times: np.ndarray) -> dict[int, _Stretch] | None:
        """Piece → what to decode in one go for the frames at `times`; None for everything.

        A frame that is stored after a keyframe and shown before it refers to the piece before: both are one stretch.
        """
        if self.in_order:
            return None
        wanted = np.isin(self.coded, times)
        own, shown = self.pieces[wanted], self.coded[wanted]
        led = set(own[shown < self.starts[wanted]].tolist())
        stretches: dict[int, _Stretch] = {}
        for piece in sorted({*own.tolist(), *(piece - 1 for piece in led)}):
            stretch = stretches[piece - 1] if piece in led else _Stretch(piece)
            stretch.last = max([stretch.last, *shown[own == piece].tolist()])
            stretches[piece] = stretch
        return stretches


def _read_timeline(file: IO[bytes], limits: VideoLimits) -> _Timeline:
    """The first pass. A video begins with its first keyframe: nothing shown before that can be decoded."""
    with _open_stream(file, limits) as (container, stream):
        tick_s, in_order = float(stream.time_base or 1), container.format.name == "avi"
        rows: list[tuple[int, int, int, bool]] = []
        earliest, latest, start, last_piece, cut = math.inf, -math.inf, 0, -1, False
        for piece, packet in _numbered(container, stream):
            cut = packet.is_corrupt
            if packet.pts is None:  # a part of the frame before
                continue
            if piece != last_piece:
                start, last_piece = packet.pts, piece
            rows.append((packet.pts, piece, start, not packet.is_discard))  # discarded: an edit list leaves it out
            earliest, latest = min(earliest, packet.pts), max(latest, packet.pts)
            if (latest - earliest) * tick_s > limits.max_seconds:
                raise DataError(f"too long: more than {limits.max_seconds:g} s")
            if len(rows) > limits.max_coded_frames:
                raise DataError(f"too many frames: more than {limits.max_coded_frames:,}")
    if cut:
        raise DataError("cut short: it ends within a frame")
    coded, pieces, starts, visible = np.array(rows, np.int64).reshape(-1, 4).T
    since = coded >= (starts[pieces > 0][0] if pieces.any() else -math.inf)
    shown = np.unique(coded[since & (visible == 1)])
    if not len(shown):
        raise DataError("holds no frames")
    return _Timeline(shown, coded, pieces, starts, tick_s, in_order)


@contextmanager
def _open_stream(file: IO[bytes], limits: VideoLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The first video stream (not a cover picture), its size checked. FFmpeg gets this file and may open no other."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if not head:
        raise DataError("the file is empty")
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    try:
        container = av.open(file, "r", options=options, metadata_errors="replace")
    except av.FFmpegError:
        if _SIGNATURES.match(head):
            raise DataError("cut short or damaged: its header or index (in an mp4, the moov atom) is missing") from None
        raise DataError(f"not a video (it begins with {head[:8]!r})") from None
    with container:
        stream = next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)
        if stream is None:
            raise DataError("holds no video stream")
        if stream.codec_context is None:
            raise DataError("holds no video of a known codec")
        if not stream.codec_context.width:
            raise DataError("damaged or too large: the size of its frames is unknown")
        _check_size(stream.codec_context.width, stream.codec_context.height, limits)
        stream.codec_context.thread_count = 1
        # Frames larger than declared: twice the area is not even decoded, codecs pad by less.
        stream.codec_context.options = {"max_pixels": str(2 * limits.max_area_px)}
        yield container, stream


def _check_size(width: int, height: int, limits: VideoLimits) -> None:
    short, long = sorted((width, height))
    shown = f"{width}x{height} px"
    if short < limits.min_side_px:
        raise DataError(f"too small: {shown}, at least {limits.min_side_px} px a side")
    if short * long > limits.max_area_px:
        raise DataError(f"too large: {shown}, at most {limits.max_area_px:,} px a frame")
    if long > limits.max_ratio * short:
        raise DataError(f"too long and thin: {shown}, at most {limits.max_ratio:g} to 1")


def _numbered(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, av.Packet[VideoStream]]]:
    """The stream's packets, each with its piece: the number of keyframes so far."""
    piece = 0
    with suppress(IndexError):  # of PyAV at the end, where streams have appeared in the middle
        for packet in container.demux(stream):
            if packet.size:
                piece += packet.is_keyframe
                yield piece, packet


def _read_frames(
    file: IO[bytes],
    limits: VideoLimits,
    timeline: _Timeline,
    times: np.ndarray,
    stretches: Mapping[int, _Stretch] | None,
    size: Size | None,
) -> tuple[np.ndarray, list[int], tuple[int, int]]:
    """The second pass: the frames at `times`, when they are shown, and the video's width and height in px."""
    wanted, rows = np.unique(times, return_inverse=True)
    frames, found, shape = np.empty(0, np.uint8), [], (0, 0)
    with _open_stream(file, limits) as (container, stream):
        decoded: Iterable[tuple[int | None, VideoFrame]] = _decode(container, stream, stretches)
        if timeline.in_order:
            decoded = zip(timeline.shown.tolist(), (frame for _, frame in decoded), strict=False)
        timed = ((time, frame) for time, frame in decoded if time is not None)
        for index, (time, frame) in enumerate(_nearest(timed, wanted.tolist(), timeline)):
            _check_size(frame.width, frame.height, limits)
            picture = Image.fromarray(_upright(frame))
            if index == 0:
                shape = picture.size
                width, height = size(*shape) if size else shape
                frames = np.empty((len(times), height, width, 3), np.uint8)
            frames[rows == index] = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
            found.append(time)
    return frames, [found[row] for row in rows], shape


def _decode(
    container: InputContainer, stream: VideoStream, stretches: Mapping[int, _Stretch] | None
) -> Iterator[tuple[int | None, VideoFrame]]:
    """The frames of the stretches (None: all) in the order shown, with their times.

    Raises DataError where one that is jumped to does not begin with a picture that stands for itself.
    """
    whole = _Stretch(0, math.inf)
    numbered = _numbered(container, stream)
    for stretch, run in groupby(numbered, lambda each: whole if stretches is None else stretches.get(each[0])):
        if stretch is None:
            continue
        jumped = stretch.first > 1
        for frame in _frames(stream, (packet for _, packet in run)):
            if jumped and frame.pict_type != PictureType.I:
                raise DataError("damaged: a frame marked as a keyframe is not one")
            jumped = False
            yield frame.pts, frame
            if frame.pts is not None and frame.pts >= stretch.last:
                break
        stream.codec_context.flush_buffers()


def _frames(stream: VideoStream, packets: Iterable[av.Packet[VideoStream]]) -> Iterator[VideoFrame]:
    for packet in chain(packets, [None]):  # None: what is left
        with suppress(av.FFmpegError):  # whether a frame is missing shows later
            yield from stream.codec_context.decode(packet)


def _nearest(
    decoded: Iterable[tuple[int, VideoFrame]], wanted: list[int], timeline: _Timeline
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frame nearest to each of the ascending times `wanted`. Holds two frames at a time.

    Raises DataError where none is as near as its neighbours would be, or one would serve twice.
    """
    frames = iter(decoded)
    before, now, taken = None, next(frames, None), None
    for target in wanted:
        while now is not None and now[0] < target:
            before, now = now, next(frames, None)
        best = min((each for each in (before, now) if each), key=lambda each: abs(each[0] - target), default=None)
        if best is None or best is taken or abs(best[0] - target) > timeline.gap:
            when_s = (target - timeline.shown[0]) * timeline.tick_s
            raise DataError(f"damaged: the frame at {when_s:.3f} s cannot be decoded")
        yield best
        taken = best


def _upright(frame: VideoFrame) -> np.ndarray:
    """Its RGB pixels [H, W, 3], turned and mirrored by quarters as its display matrix says."""
    try:
        pixels = frame.reformat(format="rgb24", threads=1).to_ndarray()
    except av.FFmpegError:
        raise DataError(f"its colours cannot be converted (colour space {frame.colorspace})") from None
    try:
        # Of a small copy: side data keep their frame alive, and it its pixels.
        small = frame.reformat(width=16, height=16, interpolation="POINT", threads=1)
        matrix: Any = small.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside it lies a kind of data that PyAV has no name for
        return np.rot90(pixels, round(frame.rotation / 90))
    if matrix is None:
        return pixels
    x_to_x, x_to_y, _, y_to_x, y_to_y = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(x_to_y) > abs(x_to_x):
        pixels, x_to_x, y_to_y = pixels.swapaxes(0, 1), y_to_x, x_to_y
    return pixels[:: -1 if y_to_y < 0 else 1, :: -1 if x_to_x < 0 else 1]
