"""Decoding ahead, in other processes, for all of the node."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ral_system.media.pixel_cache import node_folder
from ral_system.media.prefetch import MediaPrefetcher
from ral_system.media.store import MediaStore, node_store
from ral_system.media.videos import VideoLimits
from ral_system.types import VideoSampling
from tests.unit.media.clips import clip, noise


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MediaStore:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "node").mkdir()
    return MediaStore(tmp_path / "store")


def test_what_is_wanted_is_decoded_for_everybody(store: MediaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    video = store.put_video(clip(noise(0, 8, 140, 140)), VideoSampling(1.0, 8, 2), VideoLimits())
    large, small = store.put(Image.new("RGB", (400, 400))), store.put(Image.new("RGB", (40, 40)))
    broken = store.put(Image.new("RGB", (401, 400)))
    store.path(broken).write_bytes(b"gone")
    with MediaPrefetcher(store.folder, 1.0, workers=2, timeout_s=60) as ahead:
        ahead.want([video, large, small, broken])
        ahead.want([video, large])
        ahead.wait([video, large, small, broken])
        assert len(list(node_folder().glob("*.npy"))) == 2
    here = node_store(store.folder, 1.0)
    monkeypatch.setattr(here, "_decode", lambda media: pytest.fail("decoded again"))
    assert np.array_equal(here.frames(video), np.stack(noise(0, 8, 140, 140)))
    assert here.open(large).size == (400, 400)


def test_a_wait_has_a_bound_and_what_hangs_ends(store: MediaStore) -> None:
    hanging = store.put(Image.new("RGB", (600, 600)))
    store.path(hanging).unlink()
    os.mkfifo(store.path(hanging))  # is never read to its end
    with MediaPrefetcher(store.folder, 1.0, workers=1, timeout_s=1.0) as ahead:
        ahead.want([hanging])
        began = time.monotonic()
        ahead.wait([hanging])
        assert time.monotonic() - began < 5
        deadline = time.monotonic() + 30
        fine = store.put(Image.new("RGB", (601, 600)))
        while not (cached := list(node_folder().glob("*.npy"))) and time.monotonic() < deadline:
            ahead.want([hanging, fine])  # the one that hangs is not tried again, nor what waits behind it left
            ahead.wait([fine])
        assert len(cached) == 1
        ahead.want([hanging])
        assert hanging not in ahead._under_way


def test_what_a_cache_forgot_is_decoded_again(store: MediaStore) -> None:
    media = [store.put(Image.fromarray(noise(i, 1, 400, 400)[0])) for i in range(3)]
    room_for_two = 2.5 * 400 * 400 * 3 / 2**30
    with MediaPrefetcher(store.folder, room_for_two, workers=1, timeout_s=60) as ahead:
        for _ in range(2):
            for medium in media:
                ahead.want([medium])
                ahead.wait([medium])
                assert (node_folder() / f"{store.pixel_name(medium)}.npy").exists()
