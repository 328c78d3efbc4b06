"""Decoding ahead: separate processes decode the next questions' media into the cache of this node."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Self

from ral_system.media.store import MediaStore, node_store, worth_keeping
from ral_system.subprocesses import die_with, limit_memory
from ral_system.types import Media

_MEMORY_BYTES = 6 * 2**30


class MediaPrefetcher:
    """`workers` processes that fill the cache of the store in `folder`. Use as a context manager.

    What fails here is not reported: the process that needs the medium decodes it again and reports the error.
    """

    def __init__(self, folder: Path, cache_gib: float, *, workers: int, timeout_s: float) -> None:
        self._folder, self._cache_gib, self._workers, self._timeout_s = folder, cache_gib, workers, timeout_s
        self._under_way: dict[Media, Future[None]] = {}
        self._losses: Counter[Media] = Counter()
        self._given_up: set[Media] = set()
        self._pool = self._start()

    def want(self, media: Iterable[Media]) -> None:
        """Request decoding, unless it has begun; returns at once."""
        for medium in media:
            if medium in self._under_way or medium in self._given_up or not worth_keeping(medium):
                continue
            try:
                self._under_way[medium] = self._pool.submit(_decode, medium)
            except BrokenProcessPool:
                self._restart()
                self._under_way[medium] = self._pool.submit(_decode, medium)

    def wait(self, media: Iterable[Media]) -> None:
        """Wait until these are decoded, at most `timeout_s`. They may be requested again, since the cache evicts."""
        waited = {medium: self._under_way.pop(medium) for medium in list(media) if medium in self._under_way}
        wait(waited.values(), timeout=self._timeout_s)
        self._given_up |= {medium for medium, future in waited.items() if not future.done()}
        self._lose(medium for medium, future in waited.items() if _lost(future))

    def _lose(self, media: Iterable[Media]) -> None:
        """Note the media of a process that died. Media lost twice are left to the process that needs them."""
        for medium in media:
            self._losses[medium] += 1
            if self._losses[medium] > 1:
                self._given_up.add(medium)

    def _restart(self) -> None:
        print("warning: a process that decodes media ahead has died; starting another", file=sys.stderr)
        lost = [medium for medium, future in self._under_way.items() if _lost(future)]
        self._lose(lost)
        for medium in lost:
            del self._under_way[medium]
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_initialise,
            initargs=(os.getpid(), self._folder, self._cache_gib, self._timeout_s),
        )
        for _ in range(self._workers):  # started by this thread, at whose end they would be killed
            pool.submit(os.getpid)
        return pool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _lost(future: Future[None]) -> bool:
    return future.done() and isinstance(future.exception(), BrokenProcessPool)


# --- in the processes ---------------------------------------------------------------------------------------------


def _initialise(parent: int, folder: Path, cache_gib: float, timeout_s: float) -> None:
    global _store, _timeout_s
    die_with(parent)
    limit_memory(_MEMORY_BYTES)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever code it is in, and frees its lock
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    _store, _timeout_s = node_store(folder, cache_gib), timeout_s


def _decode(medium: Media) -> None:
    signal.setitimer(signal.ITIMER_REAL, _timeout_s)
    try:
        _store.fill_cache(medium)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


_store: MediaStore
_timeout_s: float
