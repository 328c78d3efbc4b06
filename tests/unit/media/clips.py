"""Videos for tests, encoded here."""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np


def clip(frames: Sequence[np.ndarray], fps: float = 1.0) -> bytes:
    """Matroska with FFV1, which loses nothing: uint8 [height, width, 3] each, at `fps`."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def noise(seed: int, frames: int, height: int, width: int) -> list[np.ndarray]:
    """Blocks of 14 px, so neighbouring patches differ."""
    cells = np.random.default_rng(seed).integers(0, 256, (frames, -(-height // 14), -(-width // 14), 3), np.uint8)
    return list(cells.repeat(14, 1).repeat(14, 2)[:, :height, :width])
