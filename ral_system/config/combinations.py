"""Checks of several groups together: combinations that are illegal or have no effect.

Checks of a single group are methods of its class. The parameters of a check are the groups that it compares, by name
and class; it runs for every configuration that has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ral_system.config.algorithm import AlgorithmConfig, ResponseConfig
from ral_system.config.base import Group
from ral_system.config.checkpoint import CheckpointConfig
from ral_system.config.choices import Stage
from ral_system.config.cluster import RayClusterConfig
from ral_system.config.data import (
    AskedBoardsConfig,
    AskedDataConfig,
    AskedLookingConfig,
    AskedVideosConfig,
    DataConfig,
    FilesConfig,
    VisualSearchConfig,
)
from ral_system.config.evaluation import (
    EvaluationConfig,
    InterventionConfig,
    MeasurementConfig,
    SweepConfig,
    sweep_is_not_blind,
)
from ral_system.config.files import (
    files_are_given,
    files_fit_the_stages,
    files_have_pictures,
    files_say_where_to_look,
)
from ral_system.config.inert import without_effect
from ral_system.config.learner import LearnerConfig
from ral_system.config.model import ModelConfig, StartModelConfig
from ral_system.config.placement import (
    broadcasts_connect_devices,
    engines_fit_the_cluster,
    engines_sit_beside_learners,
    engines_use_all_their_gpus,
    learner_ranks_have_whole_gpus,
    memory_is_of_the_device,
    memory_is_shared_on_one_device,
    waits_have_limits_in_order,
    weights_travel,
)
from ral_system.config.reward import RewardConfig
from ral_system.config.rollout import RolloutConfig
from ral_system.config.rounding import gate_allows_outliers, gate_fits_the_dtypes, held_shares_exceed_rounding
from ral_system.config.supervised import SupervisedConfig
from ral_system.config.teacher import teachers_are_used

Check = Callable[..., Iterator[str]]


def problems(config: Group) -> Iterator[str]:
    """Yield a line per contradiction between groups, with the values and what to change."""
    yield from _found(
        config,
        teachers_are_used,
        files_are_given,
        files_fit_the_stages,
        files_say_where_to_look,
        files_have_pictures,
        generated_questions_last,
        demonstrations_have_the_format,
        guidance_has_pictures,
        autocast_has_an_effect,
        benchmark_has_files,
        sweep_fits_the_subject,
        sweep_fits_the_data,
        sweep_is_not_blind,
        staleness_is_reached,
        staleness_meets_new_weights,
        rewards_are_complete_when_compared,
        lengths_agree,
        batches_divide_over_ranks,
        rates_fall_to_an_end,
        adapters_fit_the_model,
        tiny_models_are_built,
        frozen_parts_have_no_rate,
        engines_fit_the_cluster,
        engines_use_all_their_gpus,
        engines_sit_beside_learners,
        memory_is_shared_on_one_device,
        learner_ranks_have_whole_gpus,
        broadcasts_connect_devices,
        memory_is_of_the_device,
        waits_have_limits_in_order,
        weights_travel,
        scorers_have_a_reference,
        gate_fits_the_dtypes,
    )


def warnings(config: Group) -> Iterator[str]:
    """Yield a line per combination of legal values that is known to cause trouble."""
    yield from _found(config, gate_allows_outliers, held_shares_exceed_rounding)


def _found(config: Group, *checks: Check) -> Iterator[str]:
    for check in checks:
        groups = {name: kind for name, kind in get_type_hints(check).items() if name != "return"}
        if all(_is(getattr(config, name, None), kind) for name, kind in groups.items()):
            yield from check(**{name: getattr(config, name) for name in groups})


def _is(value: object, kind: Any) -> bool:
    choices = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return any(isinstance(value, get_origin(choice) or choice) for choice in choices)


def generated_questions_last(algorithm: AlgorithmConfig, data: DataConfig) -> Iterator[str]:
    """Check that there are enough generated questions for a batch."""
    a = algorithm
    if isinstance(data, FilesConfig):
        return
    if a.prompts_per_step * a.sampling_rounds * (1 + a.max_staleness) > data.train_records:
        yield (
            f"algorithm.prompts_per_step={a.prompts_per_step} with algorithm.sampling_rounds={a.sampling_rounds} and "
            f"algorithm.max_staleness={a.max_staleness} would draw a question twice with the same weights from "
            f"data.train_records={data.train_records}; raise the latter"
        )


def demonstrations_have_the_format(algorithm: ResponseConfig, data: DataConfig) -> Iterator[str]:
    """Check that demonstrations have the response format."""
    if isinstance(data, VisualSearchConfig) and data.demonstrations and algorithm.response_format == "answer_only":
        yield (
            f"data.demonstrations={data.demonstrations} hold thoughts, and algorithm.response_format=answer_only "
            "wants none; set it to null"
        )


def guidance_has_pictures(sft: SupervisedConfig, data: DataConfig) -> Iterator[str]:
    """Check that an objective on attention to pictures has pictures."""
    if isinstance(data, VisualSearchConfig) and data.sft_in_words and sft.attention_guidance.active:
        yield (
            "data.sft_in_words=true leaves sft no pictures for sft.attention_guidance to guide attention to; set "
            "sft.attention_guidance.{image=0,system=0}"
        )


def autocast_has_an_effect(perceive: SupervisedConfig, sft: SupervisedConfig, learner: LearnerConfig) -> Iterator[str]:
    """Check that autocast changes the data type of products."""
    for name, stage in (("perceive", perceive), ("sft", sft)):
        if stage.autocast == "bfloat16" and learner.dtype == "bfloat16":
            yield (
                f"{name}.autocast=bfloat16 has no effect with learner.dtype=bfloat16, whose weights are multiplied in "
                "it as they are; set it to none"
            )


def benchmark_has_files(evaluation: MeasurementConfig, data: AskedDataConfig) -> Iterator[str]:
    """Check that a benchmark comes with data that set the size of its media and its system turn."""
    name = evaluation.benchmark.name
    if name is not None and not isinstance(data, FilesConfig):
        yield (
            f"evaluation.benchmark.name={name} takes sizes of pictures and the system turn from data=files; "
            f"data.name={data.name} has none; add data=files stages=[rl]"
        )


def sweep_fits_the_subject(sweep: SweepConfig, intervention: InterventionConfig) -> Iterator[str]:
    """Check that a sweep is not combined with an intervention."""
    if sweep.axis is not None and intervention.active:
        yield (
            f"sweep.axis={sweep.axis} compares models as they are, and intervention.image={intervention.image:g} and "
            f"intervention.system={intervention.system:g} steer one; set both to 0, or choose sweep=none"
        )


def sweep_fits_the_data(sweep: SweepConfig, data: AskedDataConfig) -> Iterator[str]:
    """Check that generated data can vary as the sweep asks."""
    if isinstance(data, AskedVideosConfig):
        frames = data.FRAMES_PER_S * min(data.seconds)
        if sweep.axis == "frames" and (beyond := [value for value in sweep.values if value > frames]):
            yield f"sweep.values={beyond} are more frames than the {frames} of data.seconds; lower or raise one"
        if sweep.axis == "visual_tokens":
            yield "sweep.axis=visual_tokens: data.name=video_search varies in frames; choose sweep=frames"
    elif isinstance(data, AskedLookingConfig):
        if sweep.axis is not None:
            yield (
                f"sweep.axis={sweep.axis}: data.name=looking varies in data.difficulty, which may be a list; choose "
                "sweep=none"
            )
    elif isinstance(data, AskedBoardsConfig):
        boards = [side**2 for side in range(2, 9)]
        if sweep.axis == "frames":
            yield (
                "sweep.axis=frames needs videos, which data.name=visual_search lacks; choose data=video_search or files"
            )
        elif sweep.axis and (wrong := [value for value in sweep.values if value not in boards]):
            yield (
                f"sweep.values={wrong} are not the cells of a board of data=visual_search; use "
                f"{', '.join(map(str, boards))}"
            )


def staleness_is_reached(
    algorithm: AlgorithmConfig, checkpoint: CheckpointConfig, evaluation: EvaluationConfig
) -> Iterator[str]:
    """Check that batches can become as stale as allowed."""
    staleness = algorithm.max_staleness
    pauses = {"checkpoint.every": checkpoint.every, "algorithm.steps": algorithm.steps}
    if evaluation.every:
        pauses["evaluation.every"] = evaluation.every
    soonest = min(pauses, key=lambda name: pauses[name])
    if staleness >= pauses[soonest]:
        yield (
            f"algorithm.max_staleness={staleness} is never reached with {soonest}={pauses[soonest]}: nothing is "
            f"generated ahead of a checkpoint, an evaluation or the end; lower it below that, or raise {soonest}"
        )


def staleness_meets_new_weights(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> Iterator[str]:
    """Check that weights can change while a batch is generated."""
    if algorithm.max_staleness == 0:
        reason = "algorithm.max_staleness=0, where nothing is generated while weights change"
        remedy = "raise algorithm.max_staleness"
        yield from without_effect(rollout, "rollout", reason, remedy, "on_new_weights")


def rewards_are_complete_when_compared(algorithm: AlgorithmConfig, reward: RewardConfig) -> Iterator[str]:
    """Check that dynamic sampling compares complete rewards."""
    a, visual = algorithm, reward.visual.weight > 0
    if a.sampling_rounds > 1 and (visual or (a.kl.coefficient > 0 and a.kl.place == "reward")):
        late = "reward.visual.weight" if visual else "algorithm.kl.place=reward"
        yield (
            f"algorithm.sampling_rounds={a.sampling_rounds} compares rewards before scoring, and {late} adds to them "
            "after; set sampling_rounds to 1"
        )


def lengths_agree(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> Iterator[str]:
    """Check lengths of the algorithm against the longest response."""
    a, longest = algorithm, rollout.max_new_tokens
    if a.overlong.handling == "penalty" and a.overlong.buffer > longest:
        yield (
            f"algorithm.overlong.buffer={a.overlong.buffer} is longer than rollout.max_new_tokens={longest}; lower it"
        )
    if a.reduction != "fixed_length" and a.fixed_length != longest:
        yield (
            f"algorithm.fixed_length={a.fixed_length} has no effect with algorithm.reduction={a.reduction}; set the "
            f"reduction to fixed_length, or fixed_length to rollout.max_new_tokens, {longest}"
        )


def batches_divide_over_ranks(
    algorithm: AlgorithmConfig,
    learner: LearnerConfig,
    perceive: SupervisedConfig,
    sft: SupervisedConfig,
    stages: Sequence[Stage],
) -> Iterator[str]:
    """Check that updates of the stages are equally large, and give every rank something to do."""
    for stage, size in (("perceive", perceive.batch), ("sft", sft.batch)):
        if stage in stages and size < learner.shards:
            yield f"{stage}.batch={size} is smaller than {_shards(learner)}; raise {stage}.batch"
    if "rl" not in stages:
        return
    a = algorithm
    batch = a.prompts_per_step * a.completions_per_prompt
    if batch % a.updates_per_step:
        yield (
            f"algorithm.prompts_per_step * completions_per_prompt = {batch} is not divisible by "
            f"algorithm.updates_per_step={a.updates_per_step}; change one"
        )
    if batch // a.updates_per_step < learner.shards:
        yield (
            f"an update of {batch} / {a.updates_per_step} samples (algorithm.prompts_per_step, completions_per_prompt, "
            f"updates_per_step) is smaller than {_shards(learner)}; raise prompts_per_step, or lower updates_per_step"
        )


def _shards(learner: LearnerConfig) -> str:
    if learner.shards == learner.world_size:
        return f"learner.world_size={learner.world_size}"
    assert learner.engine == "deepspeed"
    groups = f"learner.world_size={learner.world_size} / learner.sequence_parallel={learner.sequence_parallel}"
    return f"the {learner.shards} groups of ranks ({groups})"


def rates_fall_to_an_end(learner: LearnerConfig, perceive: SupervisedConfig, sft: SupervisedConfig) -> Iterator[str]:
    """Check that the learning rate of every stage has an end if it falls, and only then."""
    for stage, group in (("learner", learner), ("perceive", perceive), ("sft", sft)):
        yield from group.schedule.problems_at(f"{stage}.schedule")


def freezes_vision(model: ModelConfig, learner: LearnerConfig) -> bool:
    """Return whether the vision encoder and the projector are frozen."""
    return model.freeze_vision or (learner.lora is not None and not learner.lora.vision)


def adapters_fit_the_model(
    model: ModelConfig, learner: LearnerConfig, stages: Sequence[Stage], start_model: str | None
) -> Iterator[str]:
    """Check that adapters are added to trained weights, and not to a frozen vision encoder."""
    if learner.lora is None:
        return
    if "perceive" in stages and model.path is None and start_model is None:
        yield (
            f"learner.lora.rank={learner.lora.rank} trains adapters on random weights: model.path=null builds a new "
            "model for perceive; set model.path or start_model to a trained one, or learner.lora=null"
        )
    if learner.lora.vision and model.freeze_vision:
        yield (
            "learner.lora.vision=true trains adapters in the vision encoder, which model.freeze_vision=true keeps "
            "fixed; set one of them to false"
        )


def tiny_models_are_built(model: StartModelConfig, start_model: str | None) -> Iterator[str]:
    """Check that the tiny model is described only where one is built. A run that starts from another run's model may
    keep the sizes that its experiment gives to the model of perceive.
    """
    fields = tuple(type(model.tiny).model_fields)
    for name, given, unread in (("model.path", model.path, fields), ("start_model", start_model, ("tokenizer",))):
        if given is not None:
            reason = f"{name}={given}, a model with its own"
            yield from without_effect(model.tiny, "model.tiny", reason, "remove the model", *unread)


def frozen_parts_have_no_rate(model: ModelConfig, learner: LearnerConfig) -> Iterator[str]:
    """Check that only parts that train have factors on their learning rates."""
    if freezes_vision(model, learner):
        by_model = model.freeze_vision
        yield from without_effect(
            learner.rate_factors,
            "learner.rate_factors",
            "model.freeze_vision=true" if by_model else "learner.lora.vision=false",
            "set model.freeze_vision to false" if by_model else "set learner.lora.vision to true",
            "vision",
            "projector",
        )


def needs_reference(algorithm: AlgorithmConfig, reward: RewardConfig) -> bool:
    """Return whether the rl stage reads the frozen reference policy: its log-probs, its attention, or where it
    looks.
    """
    attention = algorithm.attention
    return (
        algorithm.kl.coefficient > 0
        or (attention.weight > 0 and attention.anchor == "reference")
        or reward.visual.given_by("reference")
    )


def scorers_have_a_reference(
    algorithm: AlgorithmConfig, reward: RewardConfig, cluster: RayClusterConfig, learner: LearnerConfig
) -> Iterator[str]:
    """Check that there is a reference model if it has several processes."""
    if cluster.scorers > 1 and learner.lora is not None:
        yield (
            f"cluster.scorers={cluster.scorers} has no effect with learner.lora.rank={learner.lora.rank}: the learner "
            "without its adapters is the reference; set cluster.scorers=1"
        )
    elif cluster.scorers > 1 and not needs_reference(algorithm, reward):
        yield (
            f"cluster.scorers={cluster.scorers} has no effect: algorithm.kl.coefficient=0, and neither "
            "algorithm.attention nor reward.visual reads the reference; set cluster.scorers=1"
        )
