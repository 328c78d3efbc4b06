"""Folders of pictures as videos."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ral_system.errors import DataError
from ral_system.media.frame_folders import video_of
from ral_system.media.videos import VideoLimits, decode_video
from ral_system.types import VideoSampling


def write(folder: Path, count: int) -> None:
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (64, 48), (8 * i, 255 - 8 * i, 0)).save(folder / f"{i + 1:05}.jpg", quality=95)


def test_frames_come_in_the_order_of_their_names_at_their_rate(tmp_path: Path) -> None:
    write(tmp_path / "clip", 30)
    (tmp_path / "clip" / "notes.txt").write_text("not a frame")
    encoded = video_of(tmp_path / "clip", 3.0)
    frames, outline = decode_video(encoded, VideoSampling(3.0, 128, 2), VideoLimits())
    assert outline.duration_s == pytest.approx(10.0, abs=0.01) and len(frames) == 30
    assert np.abs(frames[:, 24, 32, 0].astype(int) - 8 * np.arange(30)).max() <= 3
    assert outline.times_s[3] == pytest.approx(1.0, abs=0.01)
    stretch, outline = decode_video(encoded, VideoSampling(1.0, 128, 2, start_s=4.0, end_s=8.0), VideoLimits())
    assert stretch[0, 24, 32, 0] == pytest.approx(8 * 12, abs=3) and stretch[-1, 24, 32, 0] == pytest.approx(
        8 * 24, abs=3
    )


def test_the_same_frames_are_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "clip", 3)
    assert video_of(tmp_path / "clip", 3.0) == video_of(tmp_path / "clip", 3.0)


def test_a_folder_without_frames_and_a_first_frame_that_is_none(tmp_path: Path) -> None:
    write(tmp_path / "empty", 0)
    with pytest.raises(DataError, match="empty: a folder of 0 JPEG files"):
        video_of(tmp_path / "empty", 3.0)
    write(tmp_path / "broken", 2)
    (tmp_path / "broken" / "00001.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match="not a picture"):
        video_of(tmp_path / "broken", 3.0)


def test_a_frame_that_is_none_in_the_middle_is_noticed_or_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "broken", 12)
    (tmp_path / "broken" / "00005.jpg").write_bytes(b"text")
    try:
        frames, _ = decode_video(video_of(tmp_path / "broken", 3.0), VideoSampling(3.0, 12, 2), VideoLimits())
    except DataError as error:
        assert "damaged" in str(error)
    else:
        assert len(frames) in (10, 12)
