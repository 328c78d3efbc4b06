"""A model under evaluation and its engine: vLLM, or transformers if configured or if attention is steered."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ral_system.config.rollout import VllmRolloutConfig
from ral_system.config.run import RunConfig

if TYPE_CHECKING:
    from ral_system.attention.intervention import Intervention
    from ral_system.config.choices import Device
    from ral_system.evaluation.answers import Generate
    from ral_system.media.store import MediaStore
    from ral_system.rollout.hf_generator import HfEngine
    from ral_system.rollout.vllm_generator import VllmEngine


@dataclass
class Subject:
    """A model under evaluation, and its engine, which starts when it is first needed."""

    config: RunConfig
    model: Path
    folder: Path
    media: MediaStore

    @classmethod
    def of(cls, config: RunConfig, model: str, folder: Path) -> Subject:
        """The model of that folder or hub name, evaluated in `folder`."""
        from ral_system.media.store import node_store
        from ral_system.models.folders import local_model_folder

        store = node_store(folder / "media", config.cluster.media_cache_gib)
        return cls(config, local_model_folder(model), folder, store)

    @property
    def engine(self) -> str:
        """Return `hf` if it is configured or attention is steered, else `vllm`."""
        return "hf" if self.config.intervention.active else self.config.rollout.engine

    @property
    def generate(self) -> Generate:
        """Return the engine, started if necessary."""
        return self._started.generate

    @functools.cached_property
    def _started(self) -> HfEngine | VllmEngine:
        start = _hf_engine if self.engine == "hf" else _vllm_engine
        return start(self.config, self.model, self.media)

    def release(self) -> None:
        """End the engine, if it was started; the next use starts another."""
        engine = self.__dict__.pop("_started", None)
        if engine is not None:
            engine.close()

    def steered(self) -> Generate:
        """An engine whose attention is steered as configured."""
        return _hf_engine(self.config, self.model, self.media, configured_intervention(self.config)).generate


def configured_intervention(config: RunConfig) -> Intervention:
    """Build the steering that `config.intervention` describes."""
    from ral_system.attention.intervention import Intervention

    c = config.intervention
    layers, heads = (None if chosen == "all" else chosen for chosen in (c.layers, c.heads))
    return Intervention(c.image, c.system, c.space, layers, heads)


def _hf_engine(config: RunConfig, model: Path, media: MediaStore, intervention: Intervention | None = None) -> HfEngine:
    import torch

    from ral_system.rollout.hf_generator import HfEngine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return HfEngine(model, config.rollout, media, config.seed, device, intervention)


def _vllm_engine(config: RunConfig, model: Path, media: MediaStore) -> VllmEngine:
    import torch

    assert isinstance(config.rollout, VllmRolloutConfig)
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    from ral_system.rollout.vllm_environment import vllm_environment

    os.environ.update(vllm_environment(config.rollout, config.cluster.threads_per_process, device))
    from ral_system.rollout.vllm_generator import VllmEngine

    return VllmEngine(model, config.rollout, media, config.seed, device)
