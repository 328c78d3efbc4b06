"""Processes that decode media from outside and put them into a store, in the order of the requests.

What hangs, crashes its decoder or asks for too much memory costs its own item: its process ends, and those that shared
it are decoded again.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from ral_system.errors import DataError
from ral_system.media.encoded import EncodedMedia
from ral_system.media.frame_folders import video_of
from ral_system.media.images import ImageLimits
from ral_system.media.store import MediaStore
from ral_system.media.videos import VideoLimits
from ral_system.subprocesses import die_with, limit_memory
from ral_system.types import Media, VideoSampling

T = TypeVar("T")

_AHEAD_PER_WORKER = 8
_MEMORY_BYTES = 6 * 2**30


class Decoders:
    """`workers` processes. `sampling` says which frames stand for a video, `timeout_s` is the bound on one item. Use as
    a context manager, or call `close`.
    """

    def __init__(self, store: MediaStore, sampling: VideoSampling, *, workers: int, timeout_s: float) -> None:
        self._store, self._sampling, self._workers, self._timeout_s = store, sampling, workers, timeout_s
        self._pool = self._start()

    def stored(
        self, items: Iterable[tuple[T, Sequence[EncodedMedia]]]
    ) -> Iterator[tuple[T, tuple[Media, ...] | DataError]]:
        """Yield each item's label, in order, with references to its media in their own sizes, or the error."""
        under_way: deque[tuple[T, Sequence[EncodedMedia], Future[tuple[Media, ...]]]] = deque()
        for label, media in items:
            under_way.append((label, media, self._submit(media)))
            if len(under_way) >= self._workers * _AHEAD_PER_WORKER:
                yield self._first(under_way)
        while under_way:
            yield self._first(under_way)

    def close(self) -> None:
        """End the processes; idempotent."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _first(
        self, under_way: deque[tuple[T, Sequence[EncodedMedia], Future[tuple[Media, ...]]]]
    ) -> tuple[T, tuple[Media, ...] | DataError]:
        label, media, future = under_way.popleft()
        try:
            return label, future.result()
        except DataError as error:
            return label, error
        except BrokenProcessPool:
            found = self._alone(media)  # this item broke the pool, or shared it with the one that did
            for _ in range(len(under_way)):
                other, its, _ = under_way.popleft()
                under_way.append((other, its, self._submit(its)))
            return label, found

    def _alone(self, media: Sequence[EncodedMedia]) -> tuple[Media, ...] | DataError:
        self._restart()
        try:
            return self._submit(media).result()
        except DataError as error:
            return error
        except BrokenProcessPool:
            self._restart()
            return DataError(f"its decoder crashed, or took more than {self._timeout_s:g} s")

    def _submit(self, media: Sequence[EncodedMedia]) -> Future[tuple[Media, ...]]:
        try:
            return self._pool.submit(_store, media)
        except BrokenProcessPool as error:  # noticed before the items that it held were asked for
            failed: Future[tuple[Media, ...]] = Future()
            failed.set_exception(error)
            return failed

    def _restart(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),  # a fork would copy the threads' locks
            initializer=_initialise,
            initargs=(os.getpid(), self._store.folder, self._store.shared, self._sampling, self._timeout_s),
        )


# --- in the processes ---------------------------------------------------------------------------------------------


def _initialise(parent: int, folder: Path, shared: Path | None, sampling: VideoSampling, timeout_s: float) -> None:
    global _store_here, _sampling, _timeout_s
    die_with(parent)
    limit_memory(_MEMORY_BYTES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever code it is in
    _store_here, _sampling, _timeout_s = MediaStore(folder, shared=shared), sampling, timeout_s


def _store(media: Sequence[EncodedMedia]) -> tuple[Media, ...]:
    signal.setitimer(signal.ITIMER_REAL, _timeout_s)
    try:
        return tuple(_named(one) for one in media)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _named(one: EncodedMedia) -> Media:
    """Raise DataError that names the medium, if it has a name."""
    try:
        return _stored(one)
    except MemoryError:
        reason = f"needs more than {_MEMORY_BYTES // 2**30} GiB to decode"
    except DataError as error:
        reason = str(error)
    raise DataError(f"{one.name}: {reason}" if one.name else reason)


def _stored(one: EncodedMedia) -> Media:
    try:
        key = _source_key(one)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or type(error).__name__})") from None
    media = _store_here.known(key, one.path or one.encoded or b"")
    if media is None:
        media = _decoded(one)
        _store_here.note(key, media)
    return media


def _source_key(one: EncodedMedia) -> str:
    """Return the key of a decoded medium: its bytes or current file, the sampled frames, and the limits.

    Not how long it may take: what was decoded once did not hang.
    """
    if one.path is not None:
        files = sorted(one.path.iterdir()) if one.frames_per_s is not None and one.path.is_dir() else [one.path]
        content = repr([(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()])
    else:
        content = hashlib.sha256(one.encoded or b"").hexdigest()
    asked = (one.kind, one.start_s, one.end_s, one.frames_per_s, _sampling if one.kind == "video" else None)
    return hashlib.sha256(repr((content, asked, ImageLimits(), VideoLimits())).encode()).hexdigest()


def _decoded(one: EncodedMedia) -> Media:
    source = one.path or one.encoded or b""
    if one.frames_per_s is not None and one.path is not None:
        source = video_of(one.path, one.frames_per_s)
    if one.kind == "image":
        return _store_here.put_image(source, ImageLimits())
    stretch = replace(_sampling, start_s=one.start_s, end_s=one.end_s)
    return _store_here.put_video(source, stretch, VideoLimits())


_store_here: MediaStore
_sampling: VideoSampling
_timeout_s: float
