"""Actors that fail. In a module of their own, so their processes import little."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray

from ral_system.actors.process import ActorProcess, watched
from ral_system.errors import CollectiveError, DataError, WeightTransferError
from ral_system.types import TensorDigest, WeightManifest


class Troubled(ActorProcess):
    """An actor that fails in every way."""

    @watched
    def raise_ours(self) -> None:
        raise DataError("media 12ab: is damaged")

    @watched
    def raise_foreign(self) -> None:
        raise ZeroDivisionError("a bug")

    @watched
    def wait_for_others(self) -> None:
        time.sleep(0.5)
        raise CollectiveError("learner 0 waited for other learner ranks longer than learner.collective_timeout_s=3")

    @watched
    def be_ended_by_nccl(self) -> None:
        time.sleep(0.5)
        print("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, Timeout(ms)=3000) ran for 3001 ms")
        os.abort()

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


class Unconnected(ActorProcess):
    """A learner's rank or a rollout engine whose first transfer ends after `gives_up_s`. It notes when it does what."""

    def __init__(self, *given: Any, gives_up_s: float) -> None:
        super().__init__(*given)
        self._gives_up_s, self._at = gives_up_s, list[tuple[str, float]]()

    def events(self) -> list[tuple[str, float]]:
        return self._at

    def publish(self, version: int) -> WeightManifest:
        return WeightManifest(version, {"a": TensorDigest((1,), "float32", "00")})

    def held(self, published: WeightManifest) -> WeightManifest:
        return WeightManifest(published.version, {})

    @watched
    @ray.method(num_returns=2)
    def offer(
        self, manifest: WeightManifest, names: Sequence[str]
    ) -> tuple[Mapping[str, TensorDigest], WeightManifest]:
        self._note("offers")
        return {}, manifest

    @watched
    def send(self, offer: WeightManifest) -> Mapping[str, TensorDigest]:
        self._transfer()
        return offer.tensors

    @watched
    def load_weights(self, offer: WeightManifest) -> WeightManifest:
        self._transfer()
        return offer

    def _transfer(self) -> None:
        if not any(what == "gives up" for what, _ in self._at):
            time.sleep(self._gives_up_s)
            self._note("gives up")
            raise WeightTransferError("weights 1 were not received: the cable is out")
        self._note("is done")

    def _note(self, what: str) -> None:
        self._at.append((what, time.monotonic()))
