"""A model under evaluation and its engine: vLLM, or transformers if configured or if attention is steered."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ral_system.config.commands import EvaluateConfig
from ral_system.config.rollout import EngineConfig, VllmEngineConfig

if TYPE_CHECKING:
    from ral_system.attention.intervention import Intervention
    from ral_system.config.choices import Device
    from ral_system.config.evaluation import InterventionConfig
    from ral_system.evaluation.answers import Generate
    from ral_system.media.store import MediaStore
    from ral_system.rollout.hf_generator import HfEngine
    from ral_system.rollout.vllm_generator import VllmEngine


@dataclass
class Subject:
    """A model under evaluation, and its engine, which starts when it is first needed."""

    model: Path
    folder: Path
    media: MediaStore
    rollout: EngineConfig
    seed: int
    threads: int
    """OpenMP threads of the engine on CPU."""
    intervention: InterventionConfig

    @classmethod
    def of(cls, config: EvaluateConfig, model: str, folder: Path) -> Subject:
        """The model of that folder or hub name, evaluated in `folder`. Raises SetupError for one that the engine cannot
        serve.
        """
        from ral_system.media.store import node_store
        from ral_system.models.folders import local_model_folder
        from ral_system.models.loading import load_family
        from ral_system.rollout.servable import check_servable

        cluster = config.cluster
        store = node_store(folder / "media", cluster.media_cache_gib)
        engine = (config.rollout, config.seed, cluster.threads_per_process, config.intervention)
        given = [f"sweep.models.{name}" for name, path in config.sweep.models.items() if path == model]
        subject = cls(local_model_folder(next(iter(given), "start_model"), model), folder, store, *engine)
        if subject.engine == "vllm":
            check_servable(subject.model, load_family(subject.model), _device(), subject.rollout.dtype)
        return subject

    @property
    def engine(self) -> str:
        """Return `hf` if it is configured or attention is steered, else `vllm`."""
        return "hf" if self.intervention.active else self.rollout.engine

    @property
    def generate(self) -> Generate:
        """Return the engine, started if necessary."""
        return self._started.generate

    @functools.cached_property
    def _started(self) -> HfEngine | VllmEngine:
        return self._hf_engine() if self.engine == "hf" else self._vllm_engine()

    def release(self) -> None:
        """End the engine, if it was started; the next use starts another."""
        engine = self.__dict__.pop("_started", None)
        if engine is not None:
            engine.close()

    def steered(self) -> Generate:
        """An engine whose attention is steered as configured."""
        return self._hf_engine(configured_intervention(self.intervention)).generate

    def _hf_engine(self, intervention: Intervention | None = None) -> HfEngine:
        from ral_system.rollout.hf_generator import HfEngine

        return HfEngine(self.model, self.rollout, self.media, self.seed, _device(), intervention)

    def _vllm_engine(self) -> VllmEngine:
        assert isinstance(self.rollout, VllmEngineConfig)
        device = _device()
        from ral_system.rollout.vllm_environment import vllm_environment

        os.environ.update(vllm_environment(self.rollout, self.threads, device))
        from ral_system.rollout.vllm_generator import VllmEngine

        return VllmEngine(self.model, self.rollout, self.media, self.seed, device)


def _device() -> Device:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def configured_intervention(c: InterventionConfig) -> Intervention:
    """Build the steering that the `intervention` group describes."""
    from ral_system.attention.intervention import Intervention

    layers, heads = (None if chosen == "all" else chosen for chosen in (c.layers, c.heads))
    return Intervention(c.image, c.system, c.space, layers, heads)
