"""A plan: memory, operations and time of a run, before anything starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ral_system.batches.micro_batches import bundles, groups_of, price
from ral_system.config.checkpoint import CheckpointConfig
from ral_system.config.cluster import ClusterConfig, RayClusterConfig, whole_gpus
from ral_system.config.commands import TrainConfig
from ral_system.config.evaluation import EvaluationConfig
from ral_system.config.learner import LearnerConfig
from ral_system.config.plan import PlanConfig
from ral_system.config.rollout import RolloutConfig
from ral_system.errors import ConfigError
from ral_system.models.spread import check_layers
from ral_system.planning.devices import CONTEXT, Device, gpu, this_cpu
from ral_system.planning.host import HostBytes, core_problems, fullest_node, host_problems, reserved_cores
from ral_system.planning.memory import (
    Role,
    gib,
    largest_micro_batch,
    learner_role,
    on_shared_device,
    rollout_role,
    room,
)
from ral_system.planning.passes import OutlinedPolicy
from ral_system.planning.remedies import REMEDIES
from ral_system.planning.seconds import WRITE_BYTES_PER_S, Clock, Phase, dealt_to_engines
from ral_system.planning.supervised import StagePlan, plan_stage
from ral_system.planning.workload import asked, blinded_plan, step_samples
from ral_system.scoring.reference import reference_reads
from ral_system.training.plan import plan_updates
from ral_system.types import Sample


@dataclass(frozen=True, slots=True)
class Plan:
    """Resources and time of a run. Fields are about its rl stage unless they say otherwise."""

    device: Device
    samples: Sequence[Sample]
    """The samples of one step."""
    at_once: int
    """Sequences that fit into the KV cache of an engine."""
    roles: Sequence[Role]
    host: HostBytes
    """Host memory of the fullest node; empty for a CPU, whose memory is in `roles`."""
    cores: Sequence[dict[str, float]]
    """CPU cores that Ray reserves on each node, by role; empty without Ray or without GPUs."""
    supervised: Sequence[StagePlan]
    """Stages before rl."""
    shared: Mapping[str, int]
    """Bytes of each phase on a GPU that engines and learners share, in all stages; empty if they share none."""
    phases: Sequence[Phase]
    step_s: float
    """Seconds of a step; phases that run at the same time count once."""
    evaluations_s: float
    """Seconds of all evaluations: before the first step, during training, and after the last step."""
    checkpoint_bytes: int
    run_s: float
    """Seconds of all steps, evaluations and checkpoints."""
    problems: Sequence[str]
    """Reasons why it cannot run, each with the setting to change."""
    advice: Sequence[str]
    """Notes, mostly on settings that make it slower than necessary."""

    @property
    def all_s(self) -> float:
        """Seconds of all stages."""
        return self.run_s + sum(stage.run_s for stage in self.supervised)


def make_plan(config: TrainConfig, plan: PlanConfig, folder: Path, teachers: Sequence[Path]) -> Plan:
    """Plan the stages of a run with the model in `folder`. Only its configuration and tokenizer are read.

    Raises ConfigError if no prompt fits the settings.
    """
    learner, algorithm, cluster = config.learner, config.algorithm, config.cluster
    if "rl" not in config.stages:
        raise ConfigError(f"stages={list(config.stages)}: what is planned is the rl stage; add it")
    wanted = (cluster.gpus_per_learner, cluster.gpus_per_rollout, cluster.gpus_per_scorer, cluster.gpus_per_teacher)
    kind = "cpu" if plan.device == "cpu" or (plan.device is None and not any(wanted)) else "cuda"
    policy = OutlinedPolicy(folder, learner.dtype, kind, config, trained=True)
    samples = step_samples(config, plan, policy.family)
    dealt = plan_updates(
        samples,
        updates=algorithm.updates_per_step,
        shards=learner.shards,
        max_tokens=learner.pass_tokens,
        deal=algorithm.deal,
    )
    device = this_cpu(config, policy, largest_micro_batch(dealt)) if kind == "cpu" else gpu(plan)
    clock = Clock(config, policy, device)
    rollout, cache = rollout_role(config.rollout, cluster.gpus_per_rollout, policy, device, samples[0])
    generating = clock.rollout(samples, cache)
    frozen = list(_frozen(config, kind, folder, teachers, samples, clock))
    own_reference = config.needs_reference and not config.starts_reference
    blinded = blinded_plan(algorithm.perception, learner, dealt, policy.family)
    learning = [clock.score(dealt), *([clock.blinded(blinded)] if blinded else [])]
    learning += [clock.reference(dealt)] if own_reference else []
    learning += [clock.update(dealt), clock.publish()]
    trained = learner_role(config, policy, dealt, kind)
    shares = cluster.placement == "colocated" and kind == "cuda"
    if shares:
        learning.append(clock.move([trained, *(role for role, _ in frozen)]))
    step_s = _step_seconds(config, samples, generating, [phase for _, phase in frozen], learning)
    roles = [trained, rollout, *(role for role, _ in frozen)]

    def asking(questions: int) -> float:
        return clock.rollout(asked(samples, questions), cache).seconds

    stages = (stage for stage in config.stages if stage != "rl")
    supervised = [plan_stage(stage, config, policy, folder, clock, trained, asking, samples) for stage in stages]
    learners = [stage.learner for stage in supervised]
    shared = on_shared_device(roles, learners) if shares else {}
    spare = cache.bytes - cache.token_bytes * config.rollout.max_model_len
    largest = max((trained, *learners), key=lambda role: role.total + sum(role.host.values()))
    problems = [*_problems(cluster, config.rollout, device, [largest, *roles[1:]], spare)]
    host = fullest_node(roles, plan.node_gpus, shared=shares) if kind == "cuda" else HostBytes()
    cores: list[dict[str, float]] = []
    if kind == "cuda" and isinstance(cluster, RayClusterConfig):
        cores = reserved_cores(roles, cluster, plan.node_gpus, shared=shares)
    problems += _shared_problems(device, shared)
    problems += [*host_problems(host, plan, device), *core_problems(cores, plan)]
    size = clock.checkpoint_bytes()
    evaluations_s = sum(
        times * asking(questions) for questions, times in _evaluations(algorithm.steps, config.evaluation).items()
    )
    return Plan(
        device=device,
        samples=samples,
        at_once=cache.sequences(samples, algorithm.completions_per_prompt),
        roles=roles,
        phases=[generating, *(phase for _, phase in frozen), *learning],
        step_s=step_s,
        evaluations_s=evaluations_s,
        checkpoint_bytes=size,
        run_s=algorithm.steps * step_s
        + evaluations_s
        + _checkpoints(algorithm.steps, config.checkpoint) * size / WRITE_BYTES_PER_S,
        host=host,
        cores=cores,
        supervised=supervised,
        shared=shared,
        problems=problems,
        advice=list(_advice(config, samples)),
    )


def _frozen(
    config: TrainConfig, kind: str, folder: Path, teachers: Sequence[Path], samples: Sequence[Sample], clock: Clock
) -> Iterator[tuple[Role, Phase]]:
    """Yield the reference and teachers, each with the phase in which it scores."""
    cluster, learner, teacher = config.cluster, config.learner, config.teacher
    if config.starts_reference:
        outline = OutlinedPolicy(folder, learner.dtype, kind, config, trained=False)
        reads = [read for read in reference_reads(config.algorithm.attention, config.reward.visual) if read]
        gpus, tokens = cluster.gpus_per_scorer, learner.max_tokens
        check_layers("cluster.gpus_per_scorer", whole_gpus(gpus), folder, outline.family.config)
        role = Role.frozen("reference", cluster.scorers, gpus, outline, samples, tokens, reads)
        yield role, clock.frozen("reference", outline, samples, tokens, cluster.scorers, gpus)
    for path in teachers:
        outline = OutlinedPolicy(path, teacher.dtype, kind, config, trained=False)
        gpus, tokens = cluster.gpus_per_teacher, teacher.max_tokens
        check_layers("cluster.gpus_per_teacher", whole_gpus(gpus), path, outline.family.config)
        role = Role.frozen("teacher", 1, gpus, outline, samples, tokens, [outline.read])
        yield role, clock.frozen("teacher", outline, samples, tokens, 1, gpus)


def _step_seconds(
    config: TrainConfig,
    samples: Sequence[Sample],
    generating: Phase,
    frozen: Sequence[Phase],
    learning: Sequence[Phase],
) -> float:
    """Return the seconds of a step. Frozen models score while engines generate, except for the last bundle. They score
    afterwards if batches are selected from several rounds, or devices shared. With staleness, learners and engines work
    at the same time.
    """
    scoring_s = max((phase.seconds for phase in frozen), default=0.0)
    learning_s = sum(phase.seconds for phase in learning)
    if config.algorithm.max_staleness:
        return max(generating.seconds, scoring_s + learning_s)
    if config.algorithm.sampling_rounds > 1 or config.cluster.placement == "colocated":
        return generating.seconds + scoring_s + learning_s
    last_s = scoring_s / len(bundles(groups_of(samples), config.learner.max_tokens))
    return max(generating.seconds, scoring_s) + last_s + learning_s


def _evaluations(steps: int, evaluation: EvaluationConfig) -> Counter[int]:
    """Count the evaluations by their number of held-out questions; with evaluation.blind each counts twice."""
    inside = (steps - 1) // evaluation.every if evaluation.every else 0
    each = 2 if evaluation.blind else 1
    return Counter({evaluation.questions: 2 * each}) + Counter({evaluation.every_questions: inside * each})


def _checkpoints(steps: int, checkpoint: CheckpointConfig) -> int:
    return steps // checkpoint.every if checkpoint.every else 0


def _problems(
    cluster: ClusterConfig, rollout: RolloutConfig, device: Device, roles: Sequence[Role], spare_cache: int
) -> Iterator[str]:
    if device.kind == "cpu" or cluster.kind == "local":
        needed = sum(role.processes * role.total for role in roles)
        if device.kind == "cpu":
            needed += sum(role.processes * sum(role.host.values()) + sum(role.once.values()) for role in roles)
        else:
            needed += CONTEXT
        if needed > device.usable:
            yield f"all roles together need {gib(needed)} GiB of {gib(device.usable)} on {device.name}; {_SMALLER}"
        return
    ranks = rollout.tensor_parallel if rollout.engine == "vllm" else 1
    for role in roles:
        if not role.gpus:
            yield (
                f"cluster.gpus_per_{_setting(role)}=0: the {role.name} would run on a CPU; set it to "
                f"{ranks if role.name == 'rollout' else 1}, or plan.device=cpu"
            )
            continue
        if role.total > (most := room(device, role)):
            too_much = f"the {role.name} needs {gib(role.total)} GiB of {gib(most)} on an {device.name}"
            yield f"{too_much}; {REMEDIES[role.name.partition(' ')[0]]}"
    if spare_cache < 0:
        yield (
            f"a rollout engine's cache holds no sequence of rollout.max_model_len={rollout.max_model_len}; "
            "lower it, raise rollout.gpu_memory_utilization or rollout.tensor_parallel"
        )


def _shared_problems(device: Device, shared: Mapping[str, int]) -> Iterator[str]:
    for phase, needed in shared.items():
        if needed > device.usable:
            yield (
                f"cluster.placement=colocated: to {phase}, a GPU needs {gib(needed)} GiB of {gib(device.usable)}; "
                f"{_SHARED_REMEDIES[phase]}, or set cluster.placement=disaggregated"
            )


_SHARED_REMEDIES = {
    "generate": "lower rollout.gpu_memory_utilization",
    "train": "lower learner.max_tokens, set learner.gradient_checkpointing=true or learner.zero_stage=3",
    "publish": "set learner.zero_stage=3, or choose a smaller model",
}
_SMALLER = "lower learner.world_size, rollout.workers, rollout.memory_gib, or choose a smaller model"


def _setting(role: Role) -> str:
    return "scorer" if role.name == "reference" else role.name


def _advice(config: TrainConfig, samples: Sequence[Sample]) -> Iterator[str]:
    group, algorithm = groups_of(samples)[0], config.algorithm
    prompt, most = len(samples[0].prompt.token_ids), config.rollout.max_new_tokens
    if (room := config.rollout.max_model_len - prompt) < most:
        yield f"rollout.max_model_len={config.rollout.max_model_len} leaves {room} of rollout.max_new_tokens={most}"
    if algorithm.sampling_rounds > 1:
        yield f"algorithm.sampling_rounds={algorithm.sampling_rounds}: one is counted, and each more adds a rollout"
    scored = len(bundles(groups_of(samples), config.learner.max_tokens))
    if config.starts_reference and config.cluster.scorers > scored:
        bundled = f"{scored} bundle{'s' if scored > 1 else ''}"
        yield f"cluster.scorers={config.cluster.scorers}: a batch has {bundled} to score, so some are idle"
    if (tokens := price(group)) > config.learner.pass_tokens:
        yield (
            f"learner.max_tokens={config.learner.max_tokens}{_together(config.learner)}: a group takes {tokens}, "
            "visual tokens twice, and is cut: its prompt passes again with each part"
        )
    counts = [sum(piece.completions for piece in share) for share in dealt_to_engines(samples, config.rollout.workers)]
    if max(counts) > min(counts):
        yield (
            f"algorithm.prompts_per_step={config.algorithm.prompts_per_step} with rollout.workers={len(counts)}: "
            f"engines have {min(counts)} to {max(counts)} responses, and wait for the one with most"
        )


def _together(learner: LearnerConfig) -> str:
    together = learner.world_size // learner.shards
    return f" on each of {together} ranks" if together > 1 else ""
