"""All roles in one process: no Ray, vLLM or DeepSpeed. Slow, exact, deterministic; for debugging."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ral_system.batches.micro_batches import Bundler
from ral_system.config.choices import Stage
from ral_system.config.commands import TrainConfig
from ral_system.media.store import node_store
from ral_system.models.folders import local_model_folder
from ral_system.observability.work import meters
from ral_system.protocols import FrozenModel, Ref
from ral_system.rewards.pool import RewardPool
from ral_system.rollout.hf_generator import HfEngine
from ral_system.scoring.frozen import FrozenScorer
from ral_system.scoring.reference import ReferenceScorer
from ral_system.scoring.scores import visual_rewards
from ral_system.scoring.teacher import TeacherScorer
from ral_system.training.learner_rank import LearnerRank
from ral_system.types import (
    Completions,
    Prompt,
    Sample,
    Sampling,
    TensorDigest,
    TrainPlan,
    VisualAttention,
    WeightManifest,
)
from ral_system.weights.transfer.opening import configured_transfer
from ral_system.weights.transfer.transfer import Setting, Transfer


class InProcessRoles:
    """`protocols.Roles` for `cluster=local`: a Hugging Face generator, a torch learner, one verifier pool."""

    def __init__(self, config: TrainConfig, stage: Stage, model_folder: Path, run_folder: Path) -> None:
        if not torch.cuda.is_available():
            torch.set_num_threads(config.cluster.threads_per_process)
        media = node_store(run_folder / "media", config.cluster.media_cache_gib)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rollout, algorithm = config.rollout, config.algorithm
        kind = configured_transfer(rollout, algorithm, config.cluster)
        transfer = kind(Setting.of_one_process(run_folder / "weights", waiting=algorithm.max_staleness + 1))
        self.rewarder = RewardPool(config.reward, algorithm.response_format)
        self.generator = _Generator(HfEngine(model_folder, rollout, media, config.seed, device.type, transfer=transfer))
        rank = LearnerRank(config, model_folder, media, 0, 1, stage, transfer)
        self.learner = _Learner(rank, transfer)
        self.shared_devices = None
        self.devices = 1.0
        self.reference: FrozenModel | None = None
        if stage == "rl" and config.needs_reference and not config.starts_reference:
            self.reference = _WithoutAdapters(rank)
        elif stage == "rl" and config.needs_reference:
            self.reference = _FrozenModel(
                ReferenceScorer(
                    algorithm.attention,
                    config.reward.visual,
                    model_folder,
                    media,
                    dtype=config.learner.dtype,
                    temperature=rollout.temperature,
                    max_tokens=config.learner.max_tokens,
                ),
                config.learner.max_tokens,
            )
        self.teachers = [
            _FrozenModel(
                TeacherScorer(
                    algorithm,
                    config.teacher,
                    role,
                    local_model_folder(role.field, role.path),
                    model_folder,
                    media,
                    temperature=rollout.temperature,
                ),
                config.teacher.max_tokens,
            )
            for role in config.teachers
            if stage == "rl"
        ]

    def close(self) -> None:
        """End the verifier processes."""
        self.rewarder.close()


class _Generator:
    def __init__(self, engine: HfEngine) -> None:
        self._engine = engine

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Completions:
        return self._engine.generate(prompts, sampling)

    def held(self, published: WeightManifest) -> Sequence[WeightManifest]:
        return [self._engine.held(published)]

    def load_weights(self, weights: Ref) -> Sequence[WeightManifest]:
        return [self._engine.load_weights(weights)]


class _FrozenModel:
    def __init__(self, scorer: FrozenScorer, max_tokens: int) -> None:
        self._scorer, self._bundler = scorer, Bundler(max_tokens)

    def submit(self, samples: Sequence[Sample]) -> None:
        self._scorer.score(self._bundler.add(samples))

    def collect(self, plan: TrainPlan) -> Sequence[Ref]:
        self._scorer.score(self._bundler.rest())
        return [self._scorer.take(plan.rank_ids(0))]

    def visual_rewards(self, scores: Sequence[Ref]) -> Mapping[str, float]:
        return visual_rewards(scores[0])


class _WithoutAdapters:
    """The learner's model without its adapters, which is the reference: scored when the learner scores."""

    def __init__(self, rank: LearnerRank) -> None:
        self._rank = rank

    def submit(self, samples: Sequence[Sample]) -> None:
        pass

    def collect(self, plan: TrainPlan) -> Sequence[Ref]:
        return [self._rank.score_reference(plan)]

    def visual_rewards(self, scores: Sequence[Ref]) -> Mapping[str, float]:
        return visual_rewards(scores[0])


class _Learner:
    shards = 1

    def __init__(self, rank: LearnerRank, transfer: Transfer[Any]) -> None:
        self._rank, self._keeps_offers = rank, transfer.keeps_offers
        self.attention_kernel = rank.attention_kernel
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="send")

    def score(self, plan: TrainPlan) -> Sequence[Ref]:
        return [self._rank.score(plan)]

    def check_log_probs(self, plan: TrainPlan) -> float:
        return self._rank.check_log_probs(plan)

    def visual_rewards(self, scores: Sequence[Ref]) -> Mapping[str, float]:
        return visual_rewards(scores[0])

    def kl(self, behaviour: Sequence[Ref], reference: Sequence[Ref]) -> Mapping[str, float]:
        return self._rank.kl(behaviour[0], reference[0])

    def update(
        self,
        plan: TrainPlan,
        index: int,
        behaviour: Sequence[Ref],
        reference: Sequence[Ref] | None,
        *teachers: Sequence[Ref],
    ) -> Callable[[], Mapping[str, float]]:
        frozen, teaching = reference[0] if reference else None, [scores[0] for scores in teachers]
        return lambda: self._rank.update(plan.updates[index], behaviour[0], frozen, *teaching)

    def fit(self, plan: TrainPlan, index: int) -> Callable[[], Mapping[str, float]]:
        return lambda: self._rank.fit(plan.updates[index]) | self.meters()

    def validate(self, plan: TrainPlan) -> Mapping[str, float]:
        return self._rank.validate(plan.updates[0])

    def meters(self) -> dict[str, float]:
        return meters([self._rank.work()])

    def look(self, samples: Sequence[Sample]) -> Mapping[str, VisualAttention]:
        return self._rank.look(samples)

    def publish(self, version: int) -> WeightManifest:
        manifest = self._rank.publish(version)
        assert manifest is not None, "the only rank is rank 0"
        return manifest

    def offer(self, manifest: WeightManifest, names: Sequence[str]) -> tuple[Mapping[str, TensorDigest], Ref]:
        return self._rank.offer(manifest, names)

    def send(self, offer: Ref) -> Callable[[], Mapping[str, TensorDigest]]:
        if self._keeps_offers:
            return lambda: {}
        return self._thread.submit(self._rank.send, offer).result

    def save_model(self, folder: Path) -> None:
        self._rank.save_model(folder)

    def save(self, folder: Path) -> None:
        self._rank.save(folder)

    def load(self, folder: Path) -> None:
        self._rank.load(folder)
