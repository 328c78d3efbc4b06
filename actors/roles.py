"""The roles of one stage on a Ray cluster: placed, started in parallel, shut down together."""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ral_system.actors.clients import (
    RayFrozenModel,
    RayGenerator,
    RayHolder,
    RayLearner,
    RayRewarder,
    RayWithoutAdapters,
)
from ral_system.actors.cluster import nodes_may_join, start_or_join
from ral_system.actors.ending import end_processes
from ral_system.actors.group import Call, Member, wait_all
from ral_system.actors.learner import LearnerActor
from ral_system.actors.nodes import meeting_host, nodes_of, scattered, stage_models
from ral_system.actors.placement import (
    Bundle,
    devices,
    joined,
    node_by_node,
    plan,
    release,
    reserve,
    reserved_together,
)
from ral_system.actors.process import ActorProcess
from ral_system.actors.reward import RewardActor
from ral_system.actors.rollout import RolloutActor
from ral_system.actors.scorer import ScorerActor
from ral_system.config.choices import Device, Stage
from ral_system.config.cluster import whole_gpus
from ral_system.config.commands import TrainConfig
from ral_system.config.rollout import RolloutConfig
from ral_system.endings import mark
from ral_system.media.store import originals
from ral_system.models.folders import local_model_folder
from ral_system.protocols import FrozenModel, SharedDevices
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.types import Held
from ral_system.weights.transfer.opening import configured_transfer
from ral_system.weights.transfer.transfer import Setting

_ACTORS = {
    "learner": LearnerActor,
    "rollout": RolloutActor,
    "reference": ScorerActor,
    "teacher": ScorerActor,
    "reward": RewardActor,
}

_WAITS = 5
"""How many times `rollout.weight_timeout_s`, the limit of a single wait, a whole transfer of weights may take. It also
ends a connection by NCCL, which has no limit of its own."""

OnPhase = Callable[[str, float], None]
"""Called with what was started and the seconds that it took."""


class RayRoles:
    """`protocols.Roles` behind Ray actors. Joins or starts the cluster; `close` ends the actors, not the cluster.

    Every node must see `run_folder` under the same path, and find `model_folder` there or on the hub. `on_phase` hears
    of each finished step of the start-up. Raises SetupError when the cluster cannot hold the stage or a node lacks
    something, ActorError when an actor fails to start.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        model_folder: Path,
        run_folder: Path,
        on_phase: OnPhase = lambda what, seconds: None,
    ) -> None:
        assert config.cluster.kind == "ray"
        self._config, self._cluster = config, config.cluster
        self._colocated = config.cluster.placement == "colocated"
        self._members: list[Member] = []
        self._mark = secrets.token_hex(8)
        self._gpus: list[list[str]] = []
        self._folders: dict[str, Mapping[Path, Path]] = {}
        self._teachers = (
            [local_model_folder(role.field, role.path) for role in config.teachers] if stage == "rl" else []
        )
        self._group: Any = None
        began = time.monotonic()
        bundles = plan(
            config.cluster,
            config.rollout,
            config.learner,
            stage,
            reference=config.starts_reference,
            teachers=len(self._teachers),
        )
        start_or_join(config.cluster.address)
        on_phase("cluster", time.monotonic() - began)
        reserved = [joined([bundles[index] for index in indices]) for indices in reserved_together(bundles)]
        try:
            self._group = reserve(reserved, config.cluster.start_timeout_s, nodes_may_join=nodes_may_join(), tell=_tell)
            on_phase("placement", time.monotonic() - began)
            bundles, self._reserved = node_by_node(bundles, nodes_of(self._group))
            self._stage(bundles, model_folder, run_folder)
            self._start(bundles, run_folder)
            nodes = {self._nodes[member.name] for role in ("learner", "rollout") for member in self._of(role)}
            self._transfer = configured_transfer(
                config.rollout, config.algorithm, config.cluster, one_node=len(nodes) == 1
            )
            self._build(stage, model_folder, run_folder, on_phase)
        except BaseException:
            self.close()
            raise
        timeout_s, keeps_offers = config.cluster.call_timeout_s, self._transfer.keeps_offers
        transfer_s = timeout_s if keeps_offers else min(timeout_s, _WAITS * config.rollout.weight_timeout_s)
        self.learner = RayLearner(
            self._of("learner"),
            config.learner.shards,
            timeout_s,
            send_timeout_s=transfer_s,
            keeps_offers=keeps_offers,
            attention_kernel=self._attention_kernel,
        )
        self.generator = RayGenerator(self._of("rollout"), timeout_s, transfer_s, self.learner.sending)
        self.rewarder = RayRewarder(self._of("reward"), timeout_s)
        own, teachers = config.learner.max_tokens, config.teacher.max_tokens
        self.reference: FrozenModel | None = None
        if reference := self._of("reference"):
            self.reference = RayFrozenModel(reference, own, timeout_s)
        elif stage == "rl" and config.needs_reference:
            self.reference = RayWithoutAdapters(self._of("learner"), config.learner.shards, timeout_s)
        self.teachers = [RayFrozenModel([member], teachers, timeout_s) for member in self._of("teacher")]

        self.shared_devices = self._shared_devices(timeout_s)
        self.devices = devices(bundles)

    @property
    def members(self) -> Sequence[Member]:
        """Return every actor of the stage."""
        return tuple(self._members)

    def close(self) -> None:
        """Kill every actor, wait until all that they started has ended, and give their resources back.

        What does not end within half a minute is named on stderr.
        """
        members, self._members = self._members, []
        if not ray.is_initialized():  # Ray would start a new cluster to kill them on
            return
        for member in members:
            with contextlib.suppress(Exception):  # the cluster may be gone already
                ray.kill(member.handle, no_restart=True)
        if self._group is not None:
            with contextlib.suppress(Exception):
                end_processes(self._mark, set(nodes_of(self._group)), _tell)
            with contextlib.suppress(Exception):
                release(self._group)
            self._group = None

    def _of(self, role: str) -> list[Member]:
        return [member for member in self._members if member.role == role]

    def _stage(self, bundles: Sequence[Bundle], model_folder: Path, run_folder: Path) -> None:
        """Find the models on each actor's node, and check that it can read the data's media."""

        def needed(bundle: Bundle) -> list[Path]:
            if bundle.role == "teacher":
                return [self._teachers[bundle.rank], model_folder]
            return [] if bundle.role == "reward" else [model_folder]

        models = [needed(bundle) for bundle in bundles]
        timeout_s = self._cluster.start_timeout_s
        by_reserved = nodes_of(self._group)
        nodes = [by_reserved[self._reserved[bundle.name]] for bundle in bundles]
        found = stage_models(nodes, models, originals(run_folder / "media"), run_folder, timeout_s, _tell)
        self._nodes = {bundle.name: node for bundle, node in zip(bundles, nodes, strict=True)}
        self._folders = {bundle.name: folders for bundle, folders in zip(bundles, found, strict=True)}

    def _start(self, bundles: Sequence[Bundle], run_folder: Path) -> None:
        """Start the processes, which load nothing yet."""
        for bundle in bundles:
            log = run_folder / "logs" / f"{bundle.role}_{bundle.rank}.log"
            handle = (
                _remote(_ACTORS[bundle.role])
                .options(
                    num_cpus=bundle.cpus,
                    num_gpus=bundle.own_gpus,
                    runtime_env={"env_vars": self._environment(bundle)},
                    scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, self._reserved[bundle.name]),
                )
                .remote(bundle.name, log)
            )
            self._members.append(Member(handle, bundle.role, bundle.rank, log, self._nodes[bundle.name]))

    def _environment(self, bundle: Bundle) -> dict[str, str]:
        cluster = self._cluster
        device: Device = "cuda" if bundle.gpus else "cpu"
        environment = mark(self._mark, bundle.name) | {"HF_HUB_OFFLINE": "1"}  # every node has its models by now
        if device == "cpu":
            environment |= {
                "CUDA_VISIBLE_DEVICES": "",  # an actor without GPUs must not see any
                "OMP_NUM_THREADS": str(cluster.threads_per_process),
                "OMP_WAIT_POLICY": "PASSIVE",  # idle threads sleep instead of spinning on another role's cores
                "KMP_BLOCKTIME": "0",
            }
            if bundle.role == "learner":  # activations in huge pages: 6 % less CPU time for an update of the tiny model
                environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        elif bundle.learners:  # Ray gave it no GPU of its own, and must not hide the shared ones
            gpus = [gpu for rank in bundle.learners for gpu in self._learner_gpus()[rank]]
            environment |= {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
        if bundle.role == "rollout" and self._config.rollout.engine == "vllm":
            environment |= vllm_environment(self._config.rollout, cluster.threads_per_process, device)
        return environment

    def _learner_gpus(self) -> list[list[str]]:
        """Return the GPUs of each learner rank. The first call waits until the learners' processes have started."""
        if not self._gpus:
            calls = [Call(member, member.handle.gpus.remote()) for member in self._of("learner")]
            self._gpus = wait_all(calls, self._cluster.start_timeout_s, "starting")
        return self._gpus

    def _build(self, stage: Stage, model_folder: Path, run_folder: Path, on_phase: OnPhase) -> None:
        """Load all models at once, or the engines first if they share GPUs. The first failure ends the start."""
        config, media = self._config, run_folder / "media"
        algorithm = config.algorithm
        began = time.monotonic()
        engines, calls = [], []
        for member in self._of("reward"):
            calls.append(Call(member, member.handle.build.remote(config.reward, algorithm.response_format)))
        for member in self._of("rollout"):
            built = member.handle.build.remote(
                config.rollout,
                self._cluster,
                self._at(member, model_folder),
                media,
                seed=config.seed + member.rank,
                transfer=self._transfer,
                setting=self._setting(run_folder, member.rank * _ranks(config.rollout)),
            )
            engines.append(Call(member, built))
        unfinished = Counter(member.role for member in self._members)

        def count_down(member: Member) -> None:
            unfinished[member.role] -= 1
            if not unfinished[member.role]:
                on_phase(member.role, time.monotonic() - began)

        timeout_s = self._cluster.start_timeout_s
        if (shared := self._shared_devices(timeout_s)) is not None:  # an engine measures what is free
            wait_all(engines, timeout_s, "starting", on_answer=count_down)
            shared.engines.hold(Held.NOTHING)
            engines = []
        calls += [*engines, *self._build_frozen(model_folder, media)]
        calls += self._build_learners(stage, model_folder, run_folder)
        self._attention_kernel = str(wait_all(calls, timeout_s, "starting", on_answer=count_down)[-1])  # of a learner

    def _shared_devices(self, timeout_s: float) -> SharedDevices | None:
        engines, learner = self._of("rollout"), self._of("learner")
        if not self._colocated or not engines:
            return None
        frozen = [*self._of("reference"), *self._of("teacher")]
        return SharedDevices(*(RayHolder(members, timeout_s) for members in (engines, learner, frozen)))

    def _build_frozen(self, model_folder: Path, media: Path) -> list[Call]:
        """Load the reference and the teachers."""
        config, calls = self._config, []
        algorithm, cache_gib = config.algorithm, config.cluster.media_cache_gib
        shared = {"temperature": config.rollout.temperature, "media_cache_gib": cache_gib}
        for member in self._of("reference"):
            build, folder = member.handle.build_reference.remote, self._at(member, model_folder)
            own = {"dtype": config.learner.dtype, "max_tokens": config.learner.max_tokens}
            own |= {"gpus": whole_gpus(config.cluster.gpus_per_scorer)}
            built = build(algorithm.attention, config.reward.visual, folder, media, **own, **shared)
            calls.append(Call(member, built))
        for member in self._of("teacher"):
            folders = [self._at(member, folder) for folder in (self._teachers[member.rank], model_folder)]
            build, role = member.handle.build_teacher.remote, config.teachers[member.rank]
            gpus = whole_gpus(config.cluster.gpus_per_teacher)
            calls.append(Call(member, build(algorithm, config.teacher, role, *folders, media, gpus=gpus, **shared)))
        return calls

    def _build_learners(self, stage: Stage, model_folder: Path, run_folder: Path) -> list[Call]:
        """Agree on a rendezvous, and load the model on all ranks."""
        ranks, timeout_s = self._of("learner"), self._cluster.start_timeout_s
        host = self._host("learner")
        port = wait_all([Call(ranks[0], ranks[0].handle.free_port.remote(host))], timeout_s, "starting")[0]
        learner = self._config.learner
        if line := scattered([self._nodes[m.name] for m in ranks], learner.world_size // learner.shards):
            _tell(line)
        place = {"world_size": len(ranks), "master": (host, port), "transfer": self._transfer}
        calls = []
        for m in ranks:
            folders, setting = (self._at(m, model_folder), run_folder / "media"), self._setting(run_folder, m.rank)
            build = m.handle.build.remote
            calls.append(Call(m, build(self._config, stage, *folders, rank=m.rank, setting=setting, **place)))
        return calls

    def _setting(self, run_folder: Path, rank: int) -> Setting:
        """Return the settings of the weight transfer for the process with this rank."""
        rollout = self._config.rollout
        return Setting(
            run_folder / "weights",
            waiting=self._config.algorithm.max_staleness + 1,
            rank=rank,
            receivers=len(self._of("rollout")) * _ranks(rollout),
            senders=self._config.learner.world_size if self._colocated else 1,
            host=self._host("learner", "rollout"),
            timeout_s=rollout.weight_timeout_s,
        )

    def _host(self, *roles: str) -> str:
        """Return the address of the first actor of these roles, for the others to connect to."""
        return meeting_host([self._nodes[m.name] for role in roles for m in self._of(role)])

    def _at(self, member: Member, model: Path) -> Path:
        """Return a model's path on the member's node, given its path here."""
        return self._folders[member.name][model]


def _ranks(rollout: RolloutConfig) -> int:
    """Processes of one engine."""
    return rollout.tensor_parallel if rollout.engine == "vllm" else 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _remote(kind: type[ActorProcess]) -> Any:
    threads = kind.THREADS
    return ray.remote(concurrency_groups=threads)(kind) if threads else ray.remote(kind)
