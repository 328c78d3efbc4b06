"""Memory and time of perceive and sft, the stages before rl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ral_system.config.choices import SupervisedStage
from ral_system.config.commands import TrainConfig
from ral_system.config.data import FilesConfig, VisualSearchConfig
from ral_system.planning.memory import Role, largest_micro_batch
from ral_system.planning.passes import OutlinedPolicy
from ral_system.planning.seconds import WRITE_BYTES_PER_S, Clock, Phase
from ral_system.planning.workload import asked
from ral_system.runs.folder import RunFolder
from ral_system.tasks.open import QuestionSettings, open_prompts
from ral_system.training.plan import plan_updates
from ral_system.types import MicroBatch, Sample

_RL_ALONE = ("average", "media", "records", "past weights")
"""Parts of a learner's memory that only rl has."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Memory and time of a supervised stage that runs for all of its steps."""

    name: SupervisedStage
    samples: MicroBatch
    """Demonstrations of a step."""
    drawn: bool
    """Whether they come from the data; otherwise they are as large as the samples of an rl step."""
    steps: int
    learner: Role
    step: Phase
    evaluations_s: float
    """Seconds of all evaluations."""
    run_s: float
    """Seconds of all steps, evaluations, models and checkpoints."""


def plan_stage(
    name: SupervisedStage,
    config: TrainConfig,
    policy: OutlinedPolicy,
    folder: Path,
    clock: Clock,
    learner: Role,
    asking: Callable[[int], float],
    rl_samples: Sequence[Sample],
) -> StagePlan:
    """Plan a stage. `learner`: that of rl, with the same states. `asking`: seconds to answer a number of questions."""
    settings, questions = config.supervised(name), config.evaluation.stage_questions
    drawn = _demonstrations(name, config, folder)
    samples = drawn or asked(rl_samples, settings.batch)
    shards, max_tokens = config.learner.shards, config.learner.pass_tokens
    dealt = plan_updates(samples, updates=1, shards=shards, max_tokens=max_tokens)
    phases = {"update": policy.fit(largest_micro_batch(dealt), settings.attention_guidance).peak}
    if name == "perceive":  # judged by the learner itself
        each_s = clock.validate(dealt).seconds * questions / len(samples)
    else:
        phases["publish"] = learner.phases["publish"]
        each_s = clock.publish().seconds + asking(questions)
        each_s += clock.move([learner]).seconds if config.cluster.placement == "colocated" else 0.0
    device, host = ({p: n for p, n in of.items() if p not in _RL_ALONE} for of in (learner.device, learner.host))
    steps, step = settings.max_steps, clock.fit(dealt)
    times = sum(map(settings.evaluates, range(1, steps + 1)))
    saved = -(-steps // config.checkpoint.supervised_every)  # and after the last step
    written = times * clock.model_bytes() + saved * clock.checkpoint_bytes()
    return StagePlan(
        name=name,
        samples=samples,
        drawn=bool(drawn),
        steps=steps,
        learner=replace(learner, name=f"learner in {name}", device=device, phases=phases, host=host),
        step=step,
        evaluations_s=times * each_s,
        run_s=steps * step.seconds + times * each_s + written / WRITE_BYTES_PER_S,
    )


def _demonstrations(name: SupervisedStage, config: TrainConfig, folder: Path) -> MicroBatch:
    """Return the demonstrations of a stage's last step, which are the longest; none for files, which are not read."""
    data, size = config.data, config.supervised(name).batch
    written = isinstance(data, VisualSearchConfig) and name == "sft" and data.demonstrations
    if isinstance(data, FilesConfig) or written:
        return ()
    first = (config.supervised(name).max_steps - 1) * size
    with TemporaryDirectory() as temporary:
        prompts = open_prompts(QuestionSettings.of(config), folder, RunFolder(Path(temporary)))
        return tuple(prompts.demonstration(name, "train", first + i, seed=config.seed) for i in range(size))
