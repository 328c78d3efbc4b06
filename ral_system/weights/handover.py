"""How new weights get into an engine that may be generating: at a point between two of its decoding steps."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from ral_system.config.rollout import OnNewWeights
from ral_system.errors import WeightSyncError
from ral_system.types import WeightManifest
from ral_system.weights.transfer.transfer import Offer

SAFE_POINT_WITHIN_S = 300.0
"""Bound on the wait for one: a decoding step takes seconds at most, and an engine whose listener is gone takes none."""


class Handover:
    """Loads new weights into an engine, at once while it rests.

    While it generates, the generating thread loads them at its next safe point, or, with `finish`, they are refused:
    the caller was to wait.

    `load` puts weights into the engine and says what it holds.
    """

    def __init__(self, load: Callable[[Offer], WeightManifest], on_new_weights: OnNewWeights) -> None:
        self._load, self._on_new_weights = load, on_new_weights
        self._lock = threading.RLock()
        self._taken = threading.Event()
        self._generating: int | None = None  # the thread that generates
        self._waiting: tuple[Offer, Future[WeightManifest]] | None = None

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Mark the time in which this thread generates, one generation at a time.

        Weights that still wait when it ends, or fails, are loaded then.
        """
        with self._lock:
            assert self._generating is None, "one generation at a time: steps return the requests of all"
            self._generating = threading.get_ident()
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # a failure to load is the giver's alone: this one comes first
                self._end()
            raise
        else:
            self._end()

    def give(self, weights: Offer) -> WeightManifest:
        """Put weights into the engine, and return what it then holds.

        Any thread but the generating one may call it, one at a time. Raises WeightSyncError if the engine generates
        and is to finish first, or reaches no safe point within `SAFE_POINT_WITHIN_S`.
        """
        version = weights.manifest.version
        with self._lock:
            if self._generating is None:
                return self._load(weights)
            if self._on_new_weights == "finish" or self._generating == threading.get_ident():
                raise WeightSyncError(f"weights {version}: the engine is generating; finish or close it first")
            assert self._waiting is None, "two versions at once"
            loaded: Future[WeightManifest] = Future()
            self._waiting = weights, loaded
            self._taken.clear()
        if not self._taken.wait(SAFE_POINT_WITHIN_S) and self._withdraw():
            raise WeightSyncError(
                f"weights {version}: the engine did not end a decoding step within {SAFE_POINT_WITHIN_S:.0f} s; see "
                "logs/rollout_*.log"
            )
        return loaded.result()

    def take(self) -> bool:
        """Load what waits, in the thread that generates; return whether there was something.

        A failure is raised here and where the weights were given.
        """
        with self._lock:
            if self._waiting is None:
                return False
            (weights, loaded), self._waiting = self._waiting, None
            self._taken.set()
            try:
                loaded.set_result(self._load(weights))
            except BaseException as error:
                loaded.set_exception(error)
                raise
            return True

    def _withdraw(self) -> bool:
        """Take back what nobody has taken."""
        with self._lock:
            taken, self._waiting = self._waiting is None, None
            return not taken

    def _end(self) -> None:
        with self._lock:
            self._generating = None
            self.take()
