"""`python -m bench.media`: how fast pictures and videos are stored, decoded, and read from the cache.

Prints a table; --out also writes the figures as JSON.
"""

from __future__ import annotations

import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ral_system.launch.arguments import Parser
from ral_system.media.decoders import Decoders
from ral_system.media.encoded import EncodedMedia
from ral_system.media.pixel_cache import PixelCache
from ral_system.media.store import MediaStore
from ral_system.types import Media, VideoSampling

SAMPLING = VideoSampling(fps=1.0, max_frames=128, min_frames=4)
"""The RAL paper's limits."""
PICTURE_PX, VIDEO_PX, SEEN_PX = (1024, 768), (1280, 720), (364, 196)  # a frame of 91 visual tokens
FULL = 16_000
"""Items in a full cache."""


def main() -> None:
    """Measure and print."""
    parser = Parser(prog="python -m bench.media", description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="decoding processes (%(default)s)")
    parser.add_argument("--pictures", type=int, default=200, help="JPEG, 1024 x 768 (%(default)s)")
    parser.add_argument("--videos", type=int, default=6, help="H.264, 1280 x 720, 30 s at 30 a second (%(default)s)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON to this file")
    options = parser.parse_args()
    pictures = [EncodedMedia("image", _jpeg(i), None) for i in range(options.pictures)]
    videos = [EncodedMedia("video", _video(i), None) for i in range(options.videos)]
    found: dict[str, Any] = {"workers": options.workers, "cores": os.cpu_count(), "python": platform.python_version()}
    print("| | pictures/s | videos/s |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = MediaStore(folder / "store")
        for workers in sorted({1, options.workers}):
            rates = [_taken_in(MediaStore(folder / f"w{workers}"), workers, media) for media in (pictures, videos)]
            _row(found, f"taken in by {workers} process{'es' * (workers > 1)}", rates)
        of_pictures, of_videos = (_stored(store, media) for media in (pictures, videos))
        of_videos = [replace(medium, width_px=SEEN_PX[0], height_px=SEEN_PX[1]) for medium in of_videos]
        cache = PixelCache(folder / "cache", 8 * 2**30)
        for label in ("decoded in this process", "found decoded, by another process of the node"):
            _row(found, label, [_rate(media, store.folder, cache) for media in (of_pictures, of_videos)])
        found["put_into_a_full_cache_ms"] = _put_ms(folder / "full")
        print(f"\nput into a full cache of {FULL:,} items: {found['put_into_a_full_cache_ms']:.1f} ms on average")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _row(found: dict[str, Any], label: str, rates: Sequence[float]) -> None:
    found[label] = dict(zip(("pictures_per_s", "videos_per_s"), rates, strict=True))
    print(f"| {label} | {rates[0]:,.0f} | {rates[1]:,.1f} |", flush=True)


def _taken_in(store: MediaStore, workers: int, media: Sequence[EncodedMedia]) -> float:
    with Decoders(store, SAMPLING, workers=workers, timeout_s=120) as decoders:
        list(decoders.stored((None, [media[0]]) for _ in range(workers)))  # every process has imported what it needs
        began = time.perf_counter()
        list(decoders.stored((None, [one]) for one in media))
        return len(media) / (time.perf_counter() - began)


def _stored(store: MediaStore, media: Sequence[EncodedMedia]) -> list[Media]:
    with Decoders(store, SAMPLING, workers=os.cpu_count() or 1, timeout_s=120) as decoders:
        return [medium for _, found in decoders.stored((None, [one]) for one in media) for medium in _good(found)]


def _good(found: Any) -> tuple[Media, ...]:
    if isinstance(found, Exception):
        raise found
    return tuple(found)


def _rate(media: Sequence[Media], folder: Path, cache: PixelCache) -> float:
    """Read with a store that has nothing in memory."""
    began = time.perf_counter()
    for medium in media:
        MediaStore(folder, cache).frames(medium).sum()
    return len(media) / (time.perf_counter() - began)


def _put_ms(folder: Path) -> float:
    """Mean over the fifth of the items that is put in after the cache is full, evictions included."""
    item = np.zeros((1, 16, 16, 3), np.uint8)
    cache = PixelCache(folder, FULL * (item.nbytes + 128))
    for i in range(FULL):
        cache.get(f"before{i}", lambda: item)
    began = time.perf_counter()
    for i in range(FULL // 5):
        cache.get(f"after{i}", lambda: item)
    return 1000 * (time.perf_counter() - began) / (FULL // 5)


def _scene(seed: int, size: tuple[int, int]) -> Image.Image:
    """Soft shapes and some grain, so it compresses as photographs do."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.integers(-8, 9, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(small) + grain).clip(0, 255).astype(np.uint8))


def _jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    _scene(seed, PICTURE_PX).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _video(seed: int, seconds: int = 30, rate: int = 30) -> bytes:
    import av

    buffer, scene = io.BytesIO(), np.asarray(_scene(seed, VIDEO_PX))
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options={"preset": "ultrafast", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = *VIDEO_PX, "yuv420p"
        for index in range(seconds * rate):  # the scene moves by
            frame = np.roll(scene, 2 * index, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


if __name__ == "__main__":
    main()
