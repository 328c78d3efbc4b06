"""Decoding in processes: in order, and what hangs costs its own item."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from ral_system.errors import DataError
from ral_system.media.decoders import Decoders
from ral_system.media.encoded import EncodedMedia
from ral_system.media.store import MediaStore
from ral_system.types import Media, VideoSampling
from tests.unit.media.clips import clip, noise

SAMPLING = VideoSampling(fps=1.0, max_frames=8, min_frames=2)


def picture(side: int) -> EncodedMedia:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return EncodedMedia("image", buffer.getvalue(), None)


@pytest.fixture
def never(tmp_path: Path) -> EncodedMedia:
    """A file that is never read to its end."""
    os.mkfifo(tmp_path / "pipe")
    return EncodedMedia("image", None, tmp_path / "pipe")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_hangs_costs_its_own_item(tmp_path: Path, never: EncodedMedia, workers: int) -> None:
    items = [[picture(10 + i)] for i in range(12)]
    items[3] = items[4] = [never]
    items[5] = [picture(15), EncodedMedia("video", clip(noise(0, 4, 28, 56)), None)]
    items[7] = [picture(50), picture(60), EncodedMedia("image", b"text", None)]
    with Decoders(MediaStore(tmp_path / "store"), SAMPLING, workers=workers, timeout_s=0.7) as decoders:
        found = list(decoders.stored(enumerate(items)))
    assert [label for label, _ in found] == list(range(12))
    for i, (_, media) in enumerate(found):
        if i in (3, 4):
            assert isinstance(media, DataError) and "took more than 0.7 s" in str(media)
        elif i == 7:
            assert isinstance(media, DataError) and "not a picture" in str(media)
        else:
            assert not isinstance(media, DataError)
            assert [(m.kind, m.frames, m.width_px) for m in media][:1] == [("image", 1, 10 + i)]
            assert [(m.kind, m.frames, m.width_px) for m in media][1:] == ([("video", 4, 56)] if i == 5 else [])


def test_a_file_is_decoded_once_until_it_changes(tmp_path: Path) -> None:
    path, store = tmp_path / "a.png", MediaStore(tmp_path / "store")
    encoded = picture(20).encoded or b""
    path.write_bytes(encoded)
    one = [EncodedMedia("image", None, path)]

    def found() -> object:
        with Decoders(store, SAMPLING, workers=1, timeout_s=30) as decoders:
            return next(decoders.stored([("a", one)]))[1]

    first, status = found(), path.stat()
    path.write_bytes(b"x" * len(encoded))  # no picture, but of the same size and, now, of the same time
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert found() == first and not isinstance(first, DataError)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert "not a picture" in str(found())


def test_frames_are_put_together_once_for_stores_that_share(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for i in range(6):
        Image.new("RGB", (56, 28), (40 * i, 0, 0)).save(tmp_path / "frames" / f"{i}.jpg")
    frames, shared = EncodedMedia("video", None, tmp_path / "frames", frames_per_s=2.0), tmp_path / "shared"

    def found(name: str, sampling: VideoSampling = SAMPLING) -> Media:
        store = MediaStore(tmp_path / name, shared=shared)
        with Decoders(store, sampling, workers=1, timeout_s=30) as decoders:
            ((_, media),) = decoders.stored([("a", [frames])])
        assert not isinstance(media, DataError)
        assert len(store.frames(media[0])) == media[0].frames and store.path(media[0]).is_symlink()
        return media[0]

    first, notes = found("one"), list(shared.glob("sources/*/*"))
    assert found("two") == first and list(shared.glob("sources/*/*")) == notes
    closer = found("three", VideoSampling(fps=2.0, max_frames=8, min_frames=2))
    assert closer.frames > first.frames and closer.digest == first.digest
    assert len(list(shared.glob("sources/*/*"))) == 2 and len(list(shared.glob("??/*"))) == 1
    MediaStore(shared).path(first).write_bytes(b"")
    assert found("four") == first


def test_a_file_that_cannot_be_looked_at_is_a_reason(tmp_path: Path) -> None:
    name = tmp_path / ("a" * 300)  # longer than a file system takes
    with Decoders(MediaStore(tmp_path / "store"), SAMPLING, workers=1, timeout_s=30) as decoders:
        ((_, found),) = decoders.stored([("a", [EncodedMedia("image", None, name)])])
    assert isinstance(found, DataError) and "File name too long" in str(found)


def test_one_of_several_is_named(tmp_path: Path) -> None:
    trunc = EncodedMedia("image", (picture(50).encoded or b"")[:60], None, name="images[1]: trunc.png")
    with Decoders(MediaStore(tmp_path / "store"), SAMPLING, workers=1, timeout_s=30) as decoders:
        ((_, found),) = decoders.stored([("a", [picture(50), trunc, picture(60)])])
    assert isinstance(found, DataError) and str(found).startswith("images[1]: trunc.png: cut short")


def test_no_media_need_no_decoding(tmp_path: Path) -> None:
    with Decoders(MediaStore(tmp_path), SAMPLING, workers=1, timeout_s=5) as decoders:
        assert list(decoders.stored([("a", []), ("b", [])])) == [("a", ()), ("b", ())]
