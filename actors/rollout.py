"""A rollout engine behind Ray: vLLM or transformers in its own process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import ray

from ral_system.actors.process import ActorProcess, watched
from ral_system.config.choices import Device
from ral_system.config.cluster import RayClusterConfig
from ral_system.config.rollout import HfRolloutConfig, RolloutConfig
from ral_system.heavy_imports import heavy_imports
from ral_system.media.store import node_store
from ral_system.types import Completion, Held, Piece, Sampling, WeightManifest

if TYPE_CHECKING:
    from ral_system.rollout.hf_generator import HfEngine
    from ral_system.rollout.vllm_generator import VllmEngine
    from ral_system.weights.transfer.transfer import Offer, Setting, Transfer

_FLUSH_S = 0.05  # completions that finish together travel together


class RolloutActor(ActorProcess):
    """Owns one `VllmEngine`, whose process must be started with `vllm_environment`, or one `HfEngine`."""

    THREADS: ClassVar = {"weights": 1}

    @watched
    def build(
        self,
        rollout: RolloutConfig,
        cluster: RayClusterConfig,
        model_folder: Path,
        media_folder: Path,
        *,
        seed: int,
        transfer: type[Transfer[Any]],
        setting: Setting,
    ) -> None:
        """Load the model and profile the engine: the slow part of starting."""
        device: Device = "cuda" if cluster.gpus_per_rollout else "cpu"
        media = node_store(media_folder, cluster.media_cache_gib)
        self._engine: HfEngine | VllmEngine
        if isinstance(rollout, HfRolloutConfig):
            with heavy_imports():
                from ral_system.rollout.hf_generator import HfEngine

            self._engine = HfEngine(model_folder, rollout, media, seed, device, transfer=transfer(setting))
            return
        with heavy_imports():
            from ral_system.rollout.vllm_generator import VllmEngine

        sleeps = cluster.placement == "colocated"
        self._engine = VllmEngine(model_folder, rollout, media, seed, device, transfer, setting, sleeps=sleeps)

    @ray.method(num_returns="streaming")
    def generate(self, pieces: Sequence[Piece], sampling: Sampling) -> Iterator[list[Completion]]:
        """Yield completions as they finish, a few at a time."""
        with self.watched("generate"):
            finished: list[Completion] = []
            flushed = time.monotonic()
            for completion in self._engine.generate_pieces(pieces, sampling):
                finished.append(completion)
                if time.monotonic() - flushed > _FLUSH_S:
                    yield finished
                    finished, flushed = [], time.monotonic()
            if finished:
                yield finished

    @watched
    def held(self, published: WeightManifest) -> WeightManifest:
        """Return what the engine holds under the published names."""
        return self._engine.held(published)

    @watched
    def hold(self, held: Held) -> None:
        """Change how much memory the engine holds on the shared device, between two phases; only vLLM can."""
        cast("VllmEngine", self._engine).hold(held)

    @watched
    @ray.method(concurrency_group="weights")
    def load_weights(self, offer: Offer) -> WeightManifest:
        """Load the offered weights; return what the engine then holds of them. May be called during `generate`."""
        return self._engine.load_weights(offer)
