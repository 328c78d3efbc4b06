import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ral_system.errors import DataError
from ral_system.media.images import ImageLimits
from ral_system.media.pixel_cache import PixelCache
from ral_system.media.store import MediaStore
from ral_system.types import Media
from tests.unit.media.clips import noise


def picture(seed: int = 0, size: tuple[int, int] = (28, 56)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_round_trip_is_addressed_by_the_file_content(tmp_path: Path) -> None:
    media = MediaStore(tmp_path).put(picture())
    path = tmp_path / media.digest[:2] / f"{media.digest}.image"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == media.digest
    assert (media.width_px, media.height_px) == (28, 56)
    opened = MediaStore(tmp_path).open(media)
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), np.asarray(picture()))


def test_putting_again_writes_nothing_and_leaves_no_partial_file(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    first = store.put(picture())
    written = store.path(first).stat().st_mtime_ns
    assert store.put(picture()) == first
    assert store.path(first).stat().st_mtime_ns == written
    assert [p.suffix for p in tmp_path.rglob("*") if p.is_file()] == [".image"]


def test_metadata_and_mode_do_not_enter_the_digest(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    plain = picture()
    tagged = plain.convert("RGBA")
    tagged.info = {"dpi": (300, 300), "icc_profile": b"profile"}
    assert store.put(tagged) == store.put(plain)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "is damaged"),
    ],
)
def test_missing_or_damaged_files_name_the_digest(tmp_path: Path, damage, complaint: str) -> None:
    store = MediaStore(tmp_path)
    media = store.put(picture())
    damage(store.path(media))
    with pytest.raises(DataError, match=rf"media {media.digest}: .*{complaint}") as caught:
        store.open(media)
    assert "\n" not in str(caught.value)


def test_a_reference_says_the_size_that_the_model_sees(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    media = store.put(picture())
    for _ in range(2):
        assert store.open(replace(media, height_px=28)).size == (28, 28)
        assert store.open(media).size == (28, 56)


def test_a_file_stays_where_it_is_and_may_not_change(tmp_path: Path) -> None:
    original = tmp_path / "a.png"
    picture().save(original)
    store = MediaStore(tmp_path / "store")
    media = store.put_image(original, ImageLimits())
    assert store.path(media).readlink() == original
    assert np.array_equal(np.asarray(store.open(media)), np.asarray(picture()))
    picture(seed=1).save(original)
    with pytest.raises(DataError, match="is damaged"):
        MediaStore(tmp_path / "store").open(media)


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"text").hexdigest()
    store = MediaStore(tmp_path)
    store.path(Media(digest, 1, 1)).parent.mkdir(parents=True)
    store.path(Media(digest, 1, 1)).write_bytes(b"text")
    with pytest.raises(DataError, match="not a picture"):
        store.open(Media(digest, 1, 1))


def test_a_file_from_outside_is_kept_as_it_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, format="JPEG")
    media = MediaStore(tmp_path).put_image(buffer.getvalue(), ImageLimits())
    assert (media.width_px, media.height_px) == (28, 56)
    assert MediaStore(tmp_path).path(media).read_bytes() == buffer.getvalue()
    assert MediaStore(tmp_path).open(media).size == (28, 56)
    with pytest.raises(DataError, match="cut short or damaged"):
        MediaStore(tmp_path / "none").put_image(buffer.getvalue()[:300], ImageLimits())
    assert not (tmp_path / "none").exists()


def test_a_changed_original_is_not_found_in_the_cache(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(noise(0, 1, 400, 400)[0]).save(picture)
    store = MediaStore(tmp_path / "store", PixelCache(tmp_path / "cache", 2**30))
    medium = store.put_image(picture, ImageLimits())
    assert (store.frames(medium)[0] == noise(0, 1, 400, 400)[0]).all()
    Image.fromarray(noise(1, 1, 400, 400)[0]).save(picture)
    again = MediaStore(tmp_path / "store", PixelCache(tmp_path / "cache", 2**30))
    with pytest.raises(DataError, match="has changed since it was stored"):
        again.frames(medium)


def test_a_source_is_decoded_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(source)
    store = MediaStore(tmp_path / "store")
    medium = store.put_image(source, ImageLimits())
    assert store.known("abc", source) is None
    store.note("abc", medium)
    assert store.known("abc", source) == medium and store.known("abd", source) is None
    store.path(medium).unlink()
    assert MediaStore(tmp_path / "store").known("abc", source) == medium
    assert store.path(medium).readlink() == source
    monkeypatch.setattr("ral_system.media.store.DECODERS", ("others",))
    assert store.known("abc", source) is None


def encoded(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="PNG")
    return buffer.getvalue()


def sharing(folder: Path, name: str) -> MediaStore:
    return MediaStore(folder / name / "media", shared=folder / "media")


def test_stores_that_share_copy_and_decode_once(tmp_path: Path) -> None:
    one, two = sharing(tmp_path, "one"), sharing(tmp_path, "two")
    medium = one.put_image(encoded(), ImageLimits())
    one.note("abc", medium)
    assert two.known("abc", encoded()) == medium and two.known("abd", encoded()) is None
    copies = [file for file in tmp_path.rglob("*.image") if not file.is_symlink()]
    assert copies == [tmp_path / "media" / medium.digest[:2] / f"{medium.digest}.image"]
    tmp_path.rename(moved := tmp_path.with_name("moved"))  # links to copies are relative
    for name in ("one", "two"):
        assert np.array_equal(np.asarray(sharing(moved, name).open(medium)), np.asarray(picture()))


def test_stores_that_share_do_not_depend_on_each_other_s_originals(tmp_path: Path) -> None:
    originals = [tmp_path / "old.png", tmp_path / "new.png"]
    stores = [sharing(tmp_path, "one"), sharing(tmp_path, "two")]
    for original, store in zip(originals, stores, strict=True):
        original.write_bytes(encoded())
        medium = store.put_image(original, ImageLimits())
    originals[0].unlink()
    assert stores[1].path(medium).readlink() == originals[1]
    assert np.array_equal(np.asarray(stores[1].open(medium)), np.asarray(picture()))
    assert not (tmp_path / "media").exists()  # nothing is copied that is a file


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_copy_is_mended_by_whoever_has_the_source(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    one, two = sharing(tmp_path, "one"), sharing(tmp_path, "two")
    medium = one.put_image(encoded(), ImageLimits())
    one.note("abc", medium)
    damage(one.path(medium).resolve())
    assert two.known("abc", tmp_path) is None  # a folder of frames, say: to be put together again
    assert two.known("abc", encoded()) == medium
    assert one.open(medium).tobytes() == two.open(medium).tobytes() == picture().tobytes()


def test_stores_that_share_may_write_at_once(tmp_path: Path) -> None:
    stores = [sharing(tmp_path, name) for name in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda store: [store.put_image(encoded(i), ImageLimits()) for i in range(5)], stores))
    for store, media in zip(stores, found, strict=True):
        assert [store.open(medium).tobytes() for medium in media] == [picture(i).tobytes() for i in range(5)]
    assert len([file for file in tmp_path.rglob("*.*") if not file.is_symlink()]) == 5
