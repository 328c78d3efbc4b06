"""Prompts and responses of one rl step, as large as the settings of a run and of its plan allow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from ral_system.config.commands import TrainConfig
from ral_system.config.data import DataConfig, FilesConfig, LookingConfig, VideoSearchConfig, VisualSearchConfig
from ral_system.config.learner import LearnerConfig
from ral_system.config.perception import BlindedGroup, PerceptionConfig
from ral_system.config.plan import PlanConfig
from ral_system.config.rollout import RolloutConfig
from ral_system.errors import ConfigError
from ral_system.families.family import Family
from ral_system.tasks import looking
from ral_system.tasks.cells import CELL_PX
from ral_system.tasks.looking import FRAME_GRID, GRIDS, PAIR_GRIDS, SECONDS
from ral_system.tasks.video_search import FRAME_PX
from ral_system.training.blinded_view import blinded_passes
from ral_system.types import (
    Clip,
    Counts,
    Credit,
    Media,
    MediaKind,
    Prompt,
    Region,
    Sample,
    TokenRecord,
    TrainPlan,
    UpdatePlan,
    VideoSampling,
)

_VERY_LARGE = (1 << 16, 1 << 15)


def step_samples(config: TrainConfig, plan: PlanConfig, family: Family) -> tuple[Sample, ...]:
    """Return the samples of a step, group by group. Each prompt has its own medium.

    Raises ConfigError if prompt and response do not fit `rollout.max_model_len`.
    """
    medium = largest_medium(config.data, plan, family)
    visual = (
        () if medium is None else tuple(family.tokenizer(family.expanded(medium), add_special_tokens=False).input_ids)
    )
    text = (family.tokenizer.eos_token_id,) * plan.text_tokens
    response = (family.tokenizer.eos_token_id,) * _response_tokens(config.rollout, plan, len(visual))
    top = config.algorithm.policy_loss.top_tokens
    drawn = medium is not None and config.algorithm.attention.objective.reads_evidence
    evidence = (Region(0.0, 0.0, 1.0, 1.0),) if drawn else ()
    others = (0.0,) * config.algorithm.completions_per_prompt
    record = TokenRecord(np.zeros((len(response), top + 1), np.float32), np.zeros((len(response), top), np.int32))
    return tuple(
        Sample(
            f"{p}#{i}",
            Prompt(
                f"{p}",
                "",
                "",
                "",
                () if medium is None else (replace(medium, digest=f"{p}"),),
                visual + text,
                engine_token_ids=((0,) if visual else ()) + text,
                question_positions=tuple(range(len(visual), len(visual) + len(text))),
                evidence=evidence,
            ),
            response,
            rollout_log_probs=(0.0,) * len(response),
            advantage=(-1.0) ** i,
            rollout_top=record if top else None,
            index=i,
            credit=Credit((-1.0) ** i, others, others, reward=math.inf),  # so that rows count, whatever the objective
        )
        for p in range(config.algorithm.prompts_per_step)
        for i in range(config.algorithm.completions_per_prompt)
    )


def asked(samples: Sequence[Sample], questions: int) -> tuple[Sample, ...]:
    """Return a number of held-out questions, each with one answer, as large as the samples of a step."""
    first = samples[0]
    media = first.prompt.media
    return tuple(
        replace(
            first,
            id=f"held out {q}",
            prompt=replace(
                first.prompt, id=f"held out {q}", media=tuple(replace(m, digest=f"held out {q}") for m in media)
            ),
        )
        for q in range(questions)
    )


def blinded_plan(
    settings: PerceptionConfig, learner: LearnerConfig, plan: TrainPlan, family: Family
) -> TrainPlan | None:
    """Return the scoring passes of a batch's blinded view, as one update; None if there are none."""
    if not isinstance(settings, BlindedGroup):
        return None
    by_shard = [plan.rank_samples(shard) for shard in range(len(plan.updates[0].shards))]
    passes = blinded_passes(by_shard, 0, settings, family, learner.pass_tokens, seed="")
    return TrainPlan((UpdatePlan(tuple(passes), Counts(0, 0)),)) if any(passes) else None


def _response_tokens(rollout: RolloutConfig, plan: PlanConfig, visual: int) -> int:
    most = rollout.response_limit(visual + plan.text_tokens)
    if most < 1:
        raise ConfigError(
            f"rollout.max_model_len={rollout.max_model_len}: a prompt has {visual} visual tokens and "
            f"plan.text_tokens={plan.text_tokens}, which leaves nothing for a response; raise it, or lower what data "
            "allows a medium"
        )
    if plan.response_tokens is not None and plan.response_tokens > most:
        raise ConfigError(
            f"plan.response_tokens={plan.response_tokens}: a response has at most {most}, by rollout.max_new_tokens "
            "and rollout.max_model_len; lower it"
        )
    return plan.response_tokens or most


def largest_medium(data: DataConfig, plan: PlanConfig, family: Family) -> Media | None:
    """Return the medium with most tokens that `plan.medium` and `data` allow."""
    if plan.medium == "none":
        return None
    kinds = [kind for kind in family.visual_ids if plan.medium in (None, kind)]
    allowed = [medium for kind in kinds for medium in _largest(data, family, kind)]
    if not allowed and plan.medium is None:
        raise ConfigError(
            f"data={data.name} has no pictures or videos that the model reads; choose other data, or plan.medium=none"
        )
    if not allowed:
        why = f"data={data.name} has none" if plan.medium in family.visual_ids else "the model reads none"
        raise ConfigError(f"plan.medium={plan.medium}: {why}; leave it null")
    return max(allowed, key=family.tokens)


def _largest(data: DataConfig, family: Family, kind: MediaKind) -> list[Media]:
    if isinstance(data, FilesConfig):
        budgets = family.pixel_budgets(data)
        if kind not in budgets:
            return []
        size = budgets[kind].size(*_VERY_LARGE)
        if kind == "image":
            return [Media("", *size)]
        return [_video(data.video.max_frames, data.video.fps, *size, step=family.frames_per_view)]
    return [medium for medium in _generated(data, family.frames_per_view) if medium.kind == kind]


def _generated(data: DataConfig, step: int) -> Iterator[Media]:
    if isinstance(data, VideoSearchConfig):
        yield _video(max(data.max_frames), data.FRAMES_PER_S, FRAME_PX, FRAME_PX, step=step)
    elif isinstance(data, LookingConfig):
        yield from _looking(data, step)
    elif isinstance(data, VisualSearchConfig):
        yield Media("", max(data.grid) * CELL_PX, max(data.grid) * CELL_PX)


def _looking(data: LookingConfig, step: int) -> Iterator[Media]:
    """Yield media as large as those of each family; two pictures are one with the pixels of both."""
    hardest = max(data.difficulty) - 1
    for family in data.families:
        if family == "needle":
            side = FRAME_GRID * CELL_PX
            yield _video(looking.FRAMES_PER_S * SECONDS[hardest], looking.FRAMES_PER_S, side, side, step=step)
        elif family == "compare":
            yield Media("", PAIR_GRIDS[hardest] * CELL_PX, 2 * PAIR_GRIDS[hardest] * CELL_PX)
        else:
            yield Media("", GRIDS[hardest] * CELL_PX, GRIDS[hardest] * CELL_PX)


def _video(frames: int, fps: float, width: int, height: int, *, step: int) -> Media:
    times = tuple(i / fps for i in range(frames))
    return Media("", width, height, Clip(VideoSampling(fps, frames, frames, step), times, frames / fps))


class BlankMedia:
    """A media store that returns every medium in black."""

    def open(self, medium: Media) -> Image.Image:
        """Return a black picture."""
        return Image.new("RGB", (medium.width_px, medium.height_px))

    def frames(self, medium: Media) -> np.ndarray:
        """Return the black frames of a video: uint8 [F, H, W, 3]."""
        return np.zeros((medium.frames, medium.height_px, medium.width_px, 3), np.uint8)
