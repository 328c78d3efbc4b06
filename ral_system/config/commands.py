"""The configuration of each command: the groups and fields that it reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ral_system.config.alarms import AlarmsConfig
from ral_system.config.algorithm import AlgorithmConfig, ResponseConfig
from ral_system.config.base import Group, NonNegative, Resumable
from ral_system.config.checkpoint import CheckpointConfig
from ral_system.config.choices import STAGES, Stage, SupervisedStage
from ral_system.config.cluster import ClusterConfig, ProcessConfig
from ral_system.config.combinations import freezes_vision, needs_reference
from ral_system.config.data import AskedDataConfig, DataConfig, ScenesConfig, ShownDataConfig
from ral_system.config.evaluation import (
    EvaluationConfig,
    HeldOutConfig,
    InterventionConfig,
    MeasurementConfig,
    SweepConfig,
)
from ral_system.config.learner import ForwardConfig, LearnerConfig
from ral_system.config.logging import LoggingConfig, PreviewConfig
from ral_system.config.model import ModelConfig, StartModelConfig
from ral_system.config.plan import PlanConfig
from ral_system.config.reward import JudgeConfig, RewardConfig, SignalsConfig
from ral_system.config.rollout import AskedRolloutConfig, EngineConfig, RolloutConfig
from ral_system.config.supervised import SupervisedConfig
from ral_system.config.synthesis import SynthesisConfig
from ral_system.config.teacher import TeacherConfig, TeacherRole

Resume = Annotated[Literal["auto", "never"], Resumable]


def _in_order(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    return tuple(stage for stage in STAGES if stage in stages)


class CommandConfig(Group):
    """Settings of every command."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
    """Name of the run, and of its folder in `runs_dir`."""
    runs_dir: Annotated[str, Resumable]
    """Folder of all runs."""
    algorithm: ResponseConfig


class QuestionsConfig(CommandConfig):
    """Settings of commands that ask a model questions or display them."""

    data: AskedDataConfig
    seed: NonNegative
    """Seed of everything that is random in a run, such as new weights and sampling, except the data (`data.seed`)."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1), AfterValidator(_in_order), Resumable]
    """Stages that `ral-train` runs, always in the order perceive, sft, rl. Other commands prepare the data that these
    stages would read."""
    start_model: Annotated[str | None, Resumable]
    """Folder of the model to evaluate, or from which the first requested stage starts. null: the result of the
    preceding stage of this run."""
    reward: JudgeConfig
    rollout: AskedRolloutConfig


class TrainConfig(QuestionsConfig):
    """Configuration of `ral-train`, `ral-perceive`, `ral-sft` and `ral-rl`."""

    resume: Resume
    """auto continues from the newest complete checkpoint. never refuses to run in a folder that has one."""
    data: DataConfig
    model: ModelConfig
    algorithm: AlgorithmConfig
    reward: RewardConfig
    teacher: TeacherConfig
    rollout: RolloutConfig
    learner: LearnerConfig
    perceive: SupervisedConfig
    """First stage: learn to see by describing generated pictures."""
    sft: SupervisedConfig
    """Second stage, the cold start: imitate demonstrations of responses."""
    evaluation: Annotated[EvaluationConfig, Resumable]
    checkpoint: Annotated[CheckpointConfig, Resumable]
    cluster: Annotated[ClusterConfig, Resumable]
    logging: Annotated[LoggingConfig, Resumable]
    alarms: Annotated[AlarmsConfig, Resumable]

    def of_stage(self, stage: Stage) -> AlgorithmConfig | SupervisedConfig:
        """Return the group that sets how long a stage trains."""
        return self.algorithm if stage == "rl" else self.supervised(stage)

    def supervised(self, stage: SupervisedStage) -> SupervisedConfig:
        """Return the settings of a supervised stage."""
        return self.perceive if stage == "perceive" else self.sft

    @property
    def needs_reference(self) -> bool:
        """Whether the rl stage reads the frozen reference policy."""
        return needs_reference(self.algorithm, self.reward)

    @property
    def starts_reference(self) -> bool:
        """Whether the reference has its own processes; with LoRA the learner without adapters is the reference."""
        return self.needs_reference and self.learner.lora is None

    @property
    def freezes_vision(self) -> bool:
        """Whether the vision encoder and the projector are frozen."""
        return freezes_vision(self.model, self.learner)

    @property
    def teachers(self) -> tuple[TeacherRole, ...]:
        """The teachers of the rl stage: none, one for both tokens and attention, or one for each."""
        teaching = self.algorithm.distillation
        for_tokens = self.teacher.path if teaching.tokens.weight > 0 else None
        for_attention = (self.teacher.attention_path or self.teacher.path) if teaching.attention.weight > 0 else None
        paths = dict.fromkeys(path for path in (for_tokens, for_attention) if path is not None)
        return tuple(
            TeacherRole(
                "teacher.path" if path == self.teacher.path else "teacher.attention_path",
                path,
                tokens=path == for_tokens,
                attention=path == for_attention,
            )
            for path in paths
        )


class PlanCommandConfig(TrainConfig):
    """Configuration of `ral-plan`."""

    plan: PlanConfig


class EvaluateConfig(QuestionsConfig):
    """Configuration of `ral-evaluate`."""

    reward: SignalsConfig
    rollout: EngineConfig
    learner: ForwardConfig
    evaluation: MeasurementConfig
    intervention: InterventionConfig
    sweep: SweepConfig
    cluster: ProcessConfig


class DataCommandConfig(QuestionsConfig):
    """Configuration of `ral-data`."""

    data: ShownDataConfig
    model: StartModelConfig
    evaluation: HeldOutConfig
    logging: PreviewConfig


class SynthesizeConfig(CommandConfig):
    """Configuration of `ral-synthesize`."""

    resume: Resume
    """auto continues an unfinished synthesis. never refuses to run in a folder that has one."""
    data: ScenesConfig
    synthesis: SynthesisConfig


COMMANDS: dict[str, type[CommandConfig]] = {
    "ral-train": TrainConfig,
    "ral-perceive": TrainConfig,
    "ral-sft": TrainConfig,
    "ral-rl": TrainConfig,
    "ral-plan": PlanCommandConfig,
    "ral-evaluate": EvaluateConfig,
    "ral-data": DataCommandConfig,
    "ral-synthesize": SynthesizeConfig,
}
"""Configuration class of every command that takes overrides."""
