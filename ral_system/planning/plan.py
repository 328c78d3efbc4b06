"""A plan: what a run will hold, compute and take, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ral_system.config.commands import TrainConfig
from ral_system.config.plan import PlanConfig
from ral_system.data.micro_batches import bundles, groups_of, price
from ral_system.planning.devices import Device, gpu, this_cpu
from ral_system.planning.memory import Role, largest_micro_batch, learner_role, rollout_role
from ral_system.planning.passes import OutlinedPolicy
from ral_system.planning.seconds import WRITE_BYTES_PER_S, Clock, Phase
from ral_system.planning.workload import step_samples
from ral_system.training.plan import plan_updates
from ral_system.types import Sample


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run's rl stage needs."""

    device: Device
    samples: Sequence[Sample]
    """The samples of one step."""
    at_once: int
    """Sequences that the cache of an engine holds."""
    roles: Sequence[Role]
    phases: Sequence[Phase]
    step_s: float
    """Seconds of a step; what runs side by side counts once."""
    checkpoint_bytes: int
    run_s: float
    """Seconds of all steps and checkpoints."""
    problems: Sequence[str]
    """Why it cannot run, each with the setting to change."""
    advice: Sequence[str]
    """What makes it slower than it need be."""


def make_plan(config: TrainConfig, plan: PlanConfig, folder: Path, teachers: Sequence[Path]) -> Plan:
    """Plan the rl stage of a run, for the model in `folder`, of which only the configuration and tokenizer are read.

    Raises ConfigError for settings that no prompt fits.
    """
    learner, algorithm = config.learner, config.algorithm
    kind = "cpu" if plan.device == "cpu" else "cuda"
    policy = OutlinedPolicy(folder, learner.dtype, kind, config, trained=True)
    samples = step_samples(config, plan, policy.family)
    dealt = plan_updates(
        samples,
        updates=algorithm.updates_per_step,
        world_size=learner.world_size,
        max_tokens=learner.max_tokens,
        deal=algorithm.deal,
    )
    device = this_cpu(config, policy, largest_micro_batch(dealt)) if kind == "cpu" else gpu(plan)
    clock = Clock(config, policy, device)
    rollout, cache = rollout_role(config, policy, device, samples[0])
    generating = clock.rollout(samples, cache)
    frozen = list(_frozen(config, kind, folder, teachers, samples, clock))
    learning = [clock.score(dealt), clock.update(dealt), clock.publish()]
    step_s = _step_seconds(config, samples, generating, [phase for _, phase in frozen], learning)
    roles = [learner_role(config, policy, dealt, kind), rollout, *(role for role, _ in frozen)]
    size = clock.checkpoint_bytes()
    return Plan(
        device=device,
        samples=samples,
        at_once=cache.sequences(samples, algorithm.completions_per_prompt),
        roles=roles,
        phases=[generating, *(phase for _, phase in frozen), *learning],
        step_s=step_s,
        checkpoint_bytes=size,
        run_s=algorithm.steps * step_s + _checkpoints(config) * size / WRITE_BYTES_PER_S,
        problems=list(_problems(config, device, roles, cache.bytes - cache.token_bytes * config.rollout.max_model_len)),
        advice=list(_advice(config, samples)),
    )


def _frozen(
    config: TrainConfig, kind: str, folder: Path, teachers: Sequence[Path], samples: Sequence[Sample], clock: Clock
) -> Iterator[tuple[Role, Phase]]:
    """The reference and teachers, each with what it scores."""
    cluster, learner, teacher = config.cluster, config.learner, config.teacher
    if config.needs_reference:
        outline = OutlinedPolicy(folder, learner.dtype, kind, config, trained=False)
        role = Role.frozen("reference", cluster.scorers, cluster.gpus_per_scorer, outline, samples, learner.max_tokens)
        yield role, clock.frozen("reference", outline, samples, cluster.scorers)
    for path in teachers:
        outline = OutlinedPolicy(path, teacher.dtype, kind, config, trained=False)
        role = Role.frozen("teacher", 1, cluster.gpus_per_teacher, outline, samples, teacher.max_tokens)
        yield role, clock.frozen("teacher", outline, samples, 1)


def _step_seconds(
    config: TrainConfig,
    samples: Sequence[Sample],
    generating: Phase,
    frozen: Sequence[Phase],
    learning: Sequence[Phase],
) -> float:
    """Frozen models score while engines generate, all but the last bundle; with staleness learners work beside both."""
    scoring_s = max((phase.seconds for phase in frozen), default=0.0)
    last_s = scoring_s / len(bundles(groups_of(samples), config.learner.max_tokens))
    generating_s = max(generating.seconds, scoring_s) + last_s
    learning_s = sum(phase.seconds for phase in learning)
    return max(generating_s, learning_s) if config.algorithm.max_staleness else generating_s + learning_s


def _checkpoints(config: TrainConfig) -> int:
    return config.algorithm.steps // config.checkpoint.every if config.checkpoint.every else 0


def _problems(config: TrainConfig, device: Device, roles: Sequence[Role], spare_cache: int) -> Iterator[str]:
    if device.kind == "cpu":
        needed = sum(role.processes * role.total for role in roles)
        if needed > device.bytes:
            yield f"all roles together need {gib(needed)} GiB of this machine's {gib(device.bytes)}; {_SMALLER}"
        return
    for role in roles:
        if not role.gpus:
            yield f"cluster.gpus_per_{_setting(role)}=0: the {role.name} would run on a CPU; set it to 1"
            continue
        room = int(device.bytes * min(1.0, role.gpus))
        if role.total > room:
            too_much = f"the {role.name} needs {gib(role.total)} GiB of {gib(room)} on an {device.name}"
            yield f"{too_much}; {_REMEDIES[role.name]}"
    if spare_cache < 0:
        yield (
            f"a rollout engine's cache holds no sequence of rollout.max_model_len={config.rollout.max_model_len}; "
            "lower it, raise rollout.gpu_memory_utilization or rollout.tensor_parallel"
        )


_SMALLER = "lower learner.world_size, rollout.workers, rollout.memory_gib, or choose a smaller model"
_REMEDIES = {
    "learner": (
        "lower learner.max_tokens, set learner.gradient_checkpointing=true, learner.zero_stage=3 or learner.offload, "
        "or raise learner.world_size"
    ),
    "rollout": "raise rollout.tensor_parallel, or lower rollout.max_model_len",
    "reference": "lower learner.max_tokens, or raise cluster.gpus_per_scorer",
    "teacher": "lower teacher.max_tokens, or choose a smaller teacher",
}


def _setting(role: Role) -> str:
    return "scorer" if role.name == "reference" else role.name


def _advice(config: TrainConfig, samples: Sequence[Sample]) -> Iterator[str]:
    group = groups_of(samples)[0]
    if (tokens := price(group)) > config.learner.max_tokens:
        yield (
            f"learner.max_tokens={config.learner.max_tokens}: a group takes {tokens}, visual tokens twice, and is cut: "
            "its prompt passes again with each part"
        )
    if (prompts := config.algorithm.prompts_per_step) % config.rollout.workers:
        yield (
            f"algorithm.prompts_per_step={prompts} does not divide by rollout.workers={config.rollout.workers}: some "
            "engines wait for others"
        )


def gib(size: float) -> str:
    """Bytes in GiB, to three digits."""
    return f"{size / 2**30:.3g}"
