"""An actor that fails in every way. In a module of its own, so its process imports little."""

import time
from collections.abc import Iterator

import ray

from ral_system.actors.process import ActorProcess, watched
from ral_system.errors import DataError


class Troubled(ActorProcess):
    @watched
    def raise_ours(self) -> None:
        raise DataError("media 12ab: is damaged")

    @watched
    def raise_foreign(self) -> None:
        raise ZeroDivisionError("a bug")

    def fine(self) -> int:
        return 7

    @watched
    def hang(self) -> None:
        print("about to hang in the collective")
        time.sleep(60)

    @ray.method(num_returns="streaming")
    def items(self, count: int, pause_s: float) -> Iterator[int]:
        for i in range(count):
            time.sleep(pause_s)
            yield i
