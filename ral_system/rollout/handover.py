"""How new weights get into an engine that may be generating: at a point between two of its decoding steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from ral_system.config.schema import OnNewWeights
from ral_system.errors import WeightSyncError
from ral_system.types import WeightManifest, Weights


class Handover:
    """Weights go in at once while the engine rests. While it generates, the generating thread loads them at its next
    safe point, or, with `finish`, they are refused: the caller was to wait.

    `load` puts weights into the engine and says what it holds.
    """

    def __init__(self, load: Callable[[Weights], WeightManifest], on_new_weights: OnNewWeights) -> None:
        self._load, self._on_new_weights = load, on_new_weights
        self._lock = threading.RLock()
        self._generating = False
        self._waiting: tuple[Weights, Future[WeightManifest]] | None = None

    @contextmanager
    def generating(self) -> Iterator[None]:
        """One generation at a time. Weights that still wait when it ends, or fails, are loaded then."""
        with self._lock:
            assert not self._generating, "one generation at a time: steps return the requests of all"
            self._generating = True
        try:
            yield
        finally:
            with self._lock:
                self._generating = False
                self.take()

    def give(self, weights: Weights) -> WeightManifest:
        """Returns when the engine holds the weights. Any thread may call it; one at a time."""
        with self._lock:
            if not self._generating:
                return self._load(weights)
            if self._on_new_weights == "finish":
                raise WeightSyncError(
                    f"weights {weights.manifest.version}: the engine is generating; finish or close it first"
                )
            loaded: Future[WeightManifest] = Future()
            self._waiting = weights, loaded
        return loaded.result()

    def take(self) -> bool:
        """Load what waits, in the thread that generates; whether there was something. A failure is the giver's, too."""
        with self._lock:
            if self._waiting is None:
                return False
            (weights, loaded), self._waiting = self._waiting, None
            try:
                loaded.set_result(self._load(weights))
            except BaseException as error:
                loaded.set_exception(error)
                raise
            return True
