"""Weights that arrive while an engine generates, at a moment that the test picks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ral_system.types import WeightManifest
from ral_system.weights.handover import Handover
from ral_system.weights.transfer.transfer import Offer


class Arrivals:
    """Calls a method of the engine's decoding as before, and gives it weights from another thread in between.

    `at`: after how many calls which weights arrive. They wait when the call returns, so the next step finds them.
    """

    def __init__(self, engine: Any, at: dict[int, Offer]) -> None:
        self._engine, self._at, self._calls = engine, at, 0
        self.answers: list[WeightManifest] = []
        self._threads: list[threading.Thread] = []

    def watch(self, owner: Any, method: str) -> None:
        """Count calls of `owner.method` from now on."""
        original: Callable[..., Any] = getattr(owner, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._calls += 1
            if self._calls in self._at:
                self._arrive(self._at[self._calls])
            return result

        setattr(owner, method, counted)

    def done(self) -> list[WeightManifest]:
        """List what the engine said it holds, each time."""
        for thread in self._threads:
            thread.join(60)
        return self.answers

    def _arrive(self, weights: Offer) -> None:
        handover: Handover = self._engine._handover
        thread = threading.Thread(target=lambda: self.answers.append(self._engine.load_weights(weights)))
        thread.start()
        self._threads.append(thread)
        while handover._waiting is None:
            assert thread.is_alive()
