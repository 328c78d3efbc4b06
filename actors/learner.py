"""One learner rank behind Ray: a process, a device and a rendezvous around a `LearnerRank`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ral_system.actors.cluster import LOOPBACK
from ral_system.actors.collectives import late, waited_too_long
from ral_system.actors.process import ActorProcess, watched
from ral_system.config.choices import Stage
from ral_system.config.commands import TrainConfig
from ral_system.errors import CollectiveError, RalError
from ral_system.heavy_imports import heavy_imports
from ral_system.media.store import node_store
from ral_system.observability.work import Work
from ral_system.types import Held, Sample, Scores, TensorDigest, TrainPlan, UpdatePlan, VisualAttention, WeightManifest

if TYPE_CHECKING:
    from ral_system.weights.transfer.transfer import Offer, Setting, Transfer


class LearnerActor(ActorProcess):
    """Owns one `LearnerRank`. All ranks are called together: most methods are collective."""

    _collective_timeout_s: float | None = None
    """Once the learner is built."""

    def explained(self, error: Exception) -> RalError | None:
        """Say that the other ranks did not take part in time, or what any actor says."""
        if self._collective_timeout_s is not None and waited_too_long(error):
            return CollectiveError(late(self._name, self._collective_timeout_s))
        return super().explained(error)

    def free_port(self, host: str) -> int:
        """Return a free port for the rendezvous; called on rank 0."""
        with socket.socket() as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])

    @watched
    def build(
        self,
        config: TrainConfig,
        stage: Stage,
        model_folder: Path,
        media_folder: Path,
        *,
        rank: int,
        world_size: int,
        master: tuple[str, int],
        transfer: type[Transfer[Any]],
        setting: Setting,
    ) -> str:
        """Meet the other ranks and load the model; return the name of its attention kernel."""
        os.environ |= rendezvous(rank, world_size, master, setting.host)
        with heavy_imports():
            import torch

            from ral_system.training.learner_rank import LearnerRank

        if not torch.cuda.is_available():
            torch.set_num_threads(config.cluster.threads_per_process)
        self._learner = LearnerRank(
            config,
            model_folder,
            node_store(media_folder, config.cluster.media_cache_gib),
            rank,
            world_size,
            stage,
            transfer(setting),
        )
        if config.learner.engine == "deepspeed":
            self._collective_timeout_s = config.learner.collective_timeout_s
        return self._learner.attention_kernel

    @watched
    @ray.method(num_returns=2)
    def score(self, plan: TrainPlan) -> tuple[Mapping[str, float], Scores]:
        """Return the samples' visual rewards and their scores; the caller waits only for the rewards."""
        from ral_system.scoring.scores import visual_rewards

        scores = self._learner.score(plan)
        return visual_rewards(scores), scores

    @watched
    @ray.method(num_returns=2)
    def score_reference(self, plan: TrainPlan) -> tuple[Mapping[str, float], Scores]:
        """Return what `score` does, of the model without adapters."""
        from ral_system.scoring.scores import visual_rewards

        scores = self._learner.score_reference(plan)
        return visual_rewards(scores), scores

    @watched
    def check_log_probs(self, plan: TrainPlan) -> float:
        """Compare the engines' log-probs with this rank's; return the largest difference of all ranks."""
        return self._learner.check_log_probs(plan)

    @watched
    def kl(self, behaviour: Scores, *reference: Scores) -> Mapping[str, float]:
        """Return each sample's KL to the reference, whose scores come in parts."""
        return self._learner.kl(behaviour, _merged(reference))

    @watched
    def update(self, update: UpdatePlan, behaviour: Scores, parts: int, *frozen: Scores) -> Mapping[str, float]:
        """Make one optimiser update with the policy objective.

        The first `parts` of `frozen` are the reference's scores, none if there is no reference; the others are one
        teacher's each. They are arguments of their own because Ray fetches only those.
        """
        reference = _merged(frozen[:parts]) if parts else None
        return self._learner.update(update, behaviour, reference, *frozen[parts:])

    @watched
    def fit(self, update: UpdatePlan) -> tuple[Mapping[str, float], Work]:
        """Make one optimiser update with the supervised objective; return its metrics and what the rank did."""
        return self._learner.fit(update), self._learner.work()

    @watched
    def validate(self, update: UpdatePlan) -> Mapping[str, float]:
        """Evaluate the supervised objective without an update."""
        return self._learner.validate(update)

    @watched
    def work(self) -> Work:
        """Return what the rank did in its updates since the last call."""
        return self._learner.work()

    @watched
    def look(self, samples: Sequence[Sample]) -> Mapping[str, VisualAttention]:
        """Return maps of where answers look on their pictures."""
        return self._learner.look(samples)

    @watched
    def publish(self, version: int) -> WeightManifest | None:
        """Take the current weights as `version`; return their manifest on rank 0."""
        return self._learner.publish(version)

    @watched
    def hold(self, held: Held) -> None:
        """Change how much memory the rank holds on the shared device, between two phases."""
        self._learner.hold(held)

    @watched
    @ray.method(num_returns=2)
    def offer(self, manifest: WeightManifest, names: Sequence[str]) -> tuple[Mapping[str, TensorDigest], Offer | None]:
        """Return rank 0's digests and its offer of the named tensors; the caller fetches only the digests."""
        return self._learner.offer(manifest, names)

    @watched
    def send(self, offer: Offer) -> Mapping[str, TensorDigest]:
        """Send what was offered to the engines that receive it now; return its digests, from rank 0."""
        return self._learner.send(offer)

    @watched
    def save_model(self, folder: Path) -> None:
        """Write the model in Hugging Face format."""
        self._learner.save_model(folder)

    @watched
    def save(self, folder: Path) -> None:
        """Write this rank's training state."""
        self._learner.save(folder)

    @watched
    def load(self, folder: Path) -> None:
        """Read this rank's training state."""
        self._learner.load(folder)


def rendezvous(rank: int, world_size: int, master: tuple[str, int], weights_host: str) -> dict[str, str]:
    """Return the variables by which a rank meets the others at `master`, host and port.

    Weights leave this process over the same interfaces as gradients. They are loopback only if engines find the
    learner there (`weights_host`). A user's choice of interfaces stays.
    """
    host, port = master
    found = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",  # Ray shows each process its own devices only
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }
    if weights_host == LOOPBACK:
        found |= {name: os.environ.get(name, "lo") for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    return found


def _merged(parts: Sequence[Scores]) -> Scores:
    return {id: scores for part in parts for id, scores in part.items()}
