"""Decoded pixels are shared by processes, once each, within a budget."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from ral_system.media.pixel_cache import PixelCache
from ral_system.media.store import MediaStore, node_store

ITEM = np.full((1, 100, 100, 3), 7, np.uint8)  # 30,000 bytes and a header of 128


def forbidden() -> np.ndarray:
    raise AssertionError("decoded again")


def test_what_was_decoded_once_is_there(tmp_path: Path) -> None:
    first, second = PixelCache(tmp_path / "c", 10**6), PixelCache(tmp_path / "c", 10**6)
    assert np.array_equal(first.get("a", lambda: ITEM), ITEM)
    assert np.array_equal(second.get("a", forbidden), ITEM)
    assert oct((tmp_path / "c").stat().st_mode)[-3:] == "700"
    assert [f.name for f in (tmp_path / "c").iterdir() if not f.name.startswith(".")] == ["a.npy"]


def test_what_was_used_longest_ago_leaves_first(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path, 101_000)  # three of them, also in nine tenths of it
    for at, name in enumerate("abc"):
        cache.get(name, lambda: ITEM)
        os.utime(tmp_path / f"{name}.npy", (at, at))
    held = cache.get("a", forbidden)  # used now
    cache.get("d", lambda: ITEM)
    assert {f.stem for f in tmp_path.glob("*.npy")} == {"a", "c", "d"}
    cache.get("e", lambda: ITEM)
    cache.get("f", lambda: ITEM)
    assert sum(f.stat().st_size for f in tmp_path.glob("*.npy")) <= 101_000
    assert np.array_equal(held, ITEM)  # a process that has it keeps it
    cache.get("a", lambda: ITEM)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that were looked at."""
    seen, scandir = [], os.scandir

    def noted(folder: Path) -> object:
        seen.append(folder)
        return scandir(folder)

    monkeypatch.setattr("ral_system.media.pixel_cache.os.scandir", noted)
    return seen


def used(folder: Path) -> int:
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # renamed meanwhile
            total += file.stat().st_size if file.suffix in (".npy", ".partial") else 0
    return total


def test_a_full_folder_is_looked_at_once_in_a_tenth_of_the_budget(tmp_path: Path, scans: list[Path]) -> None:
    cache = PixelCache(tmp_path, 100 * 30_128)
    for i in range(100):
        cache.get(f"a{i}", lambda: ITEM)
    assert len(scans) == 1 and used(tmp_path) == 100 * 30_128  # in the beginning it is not known what is there
    for i in range(100):
        PixelCache(tmp_path, 100 * 30_128).get(f"b{i}", lambda: ITEM)
        assert 90 * 30_128 <= used(tmp_path) <= 100 * 30_128
    assert len(scans) == 11


@pytest.mark.parametrize("count", ["", "12x", "99999999", None])
def test_a_count_that_is_wrong_is_put_right(tmp_path: Path, scans: list[Path], count: str | None) -> None:
    cache = PixelCache(tmp_path, 5 * 30_128)
    for name in "abc":
        cache.get(name, lambda: ITEM)
    (tmp_path / "b.npy").unlink()  # vanished
    (tmp_path / "killed.partial").write_bytes(b"x" * 1000)
    if count is None:
        (tmp_path / ".used").unlink()
    else:
        (tmp_path / ".used").write_text(count)
    scans.clear()
    cache.get("d", lambda: ITEM)
    assert len(scans) == 1 and (tmp_path / ".used").read_text() == str(used(tmp_path))
    assert {f.stem for f in tmp_path.glob("*.npy")} == {"a", "c", "d"}  # there was room


def test_writers_at_once_keep_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file counts from before its first byte is written; evictions meanwhile are not reported."""
    budget, writers, save = 3 * 30_128, 6, np.save
    together, most = threading.Barrier(writers), []

    def saved(file: IO[bytes], pixels: np.ndarray, *, allow_pickle: bool) -> None:
        together.wait(timeout=30)
        most.append(used(tmp_path))
        save(file, pixels, allow_pickle=allow_pickle)
        most.append(used(tmp_path))

    monkeypatch.setattr("ral_system.media.pixel_cache.np.save", saved)
    caches = [PixelCache(tmp_path, budget) for _ in range(writers)]
    # These names share none of the locks under which items are decoded.
    with ThreadPoolExecutor(writers) as pool:
        found = list(pool.map(lambda i: caches[i].get(f"n{i}", lambda: ITEM), range(writers)))
    assert all(np.array_equal(pixels, ITEM) for pixels in found)
    assert len(most) == 2 * writers and max(most) <= budget and used(tmp_path) <= budget
    assert len(list(tmp_path.glob("*.npy"))) >= 2 and not list(tmp_path.glob("*.partial"))
    assert not capsys.readouterr().err


def test_what_is_larger_than_the_budget_is_not_kept(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path, 20_000)
    assert np.array_equal(cache.get("a", lambda: ITEM), ITEM)
    assert not list(tmp_path.glob("*.npy"))


def test_a_decoder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path, 10**6)
    with pytest.raises(AssertionError):
        cache.get("a", forbidden)
    assert np.array_equal(cache.get("a", lambda: ITEM), ITEM)


PROGRAM = """
import sys, time
import numpy as np
from pathlib import Path
from ral_system.media.pixel_cache import PixelCache

def decode():
    with open(sys.argv[2], "a") as log:
        log.write("x")
    time.sleep(0.5)
    return np.ones((1, 4, 4, 3), np.uint8)

assert PixelCache(Path(sys.argv[1]), 10**6).get("a", decode).sum() == 48
"""


def test_processes_that_want_the_same_decode_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    began = time.monotonic()
    asking = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path / "c"), str(log)]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in asking] == [0, 0, 0]
    assert log.read_text() == "x"
    assert time.monotonic() - began < 60


def test_stores_on_one_node_decode_a_picture_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    pixels = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
    media = MediaStore(tmp_path / "store").put(Image.fromarray(pixels))
    assert np.array_equal(node_store(tmp_path / "store", 0.1).frames(media)[0], pixels)
    another = node_store(tmp_path / "store", 0.1)
    monkeypatch.setattr(another, "_decode", forbidden)
    assert np.array_equal(np.asarray(another.open(media)), pixels)
    alone = node_store(tmp_path / "store", 0)
    monkeypatch.setattr(alone, "_decode", lambda media: ITEM)
    assert alone.frames(media) is ITEM


def test_a_process_keeps_a_bounded_amount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ral_system.media.store._CACHED_BYTES", 70_000)
    store = MediaStore(tmp_path)
    media = [store.put(Image.new("RGB", (100, 100), (i, 0, 0))) for i in range(4)]
    for _ in range(3):  # what was dropped is decoded again, and what was used last stays
        for medium in media:
            store.frames(medium)
            store.frames(medium)
        assert sum(kept.nbytes for kept in store._decoded.values()) == 60_000
        assert list(store._decoded) == media[2:]
