"""The scoring pass with blinded media: which pictures it sees, that it repeats, and what it leaves alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ral_system.batches.micro_batches import price
from ral_system.config.commands import TrainConfig
from ral_system.data.chat import ChatRenderer
from ral_system.media.blinding import BlindedMedia
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.training.blinded_view import blinded_passes, blinded_sample, with_advantage_factors
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import Counts, Prompt, Sample, SampleScores, Scores, TrainPlan, UpdatePlan, VideoSampling
from tests.unit.media.clips import noise
from tests.unit.training.learners import Start, Watched
from tests.unit.training.thread_ranks import together

LOOSE = ("rollout.log_prob_gate.token=1e9", "learner.learning_rate=0.01", "learner.warmup_updates=0")
each_method = pytest.mark.parametrize("method", ["papo", "vppo"])


def groups(samples: Sequence[Sample], count: int = 2, responses: int = 3) -> list[Sample]:
    """Three responses to each of `count` questions."""
    return [
        Sample(f"{s.prompt.id}#{n}", s.prompt, s.response_token_ids[n:], s.rollout_log_probs[n:], 1.0 - n, index=n)
        for s in samples[:count]
        for n in range(responses)
    ]


def plan(samples: Sequence[Sample], max_tokens: int = 10_000, deal: str = "groups") -> TrainPlan:
    return plan_updates(list(samples), updates=2, shards=1, max_tokens=max_tokens, deal=deal)  # type: ignore[arg-type]


def blinded_log_probs(scores: Scores, id: str) -> np.ndarray:
    found = scores[id].blinded_log_probs
    assert found is not None
    return found


def alone(rank: LearnerRank, sample: Sample) -> np.ndarray:
    """Log-probs of one sample in a pass of its own."""
    with torch.no_grad():
        return rank._engine.forward(rank._collate((sample,))).log_probs[0].numpy()


@each_method
@pytest.mark.parametrize(
    ("max_tokens", "frozen", "deal"), [(10_000, False, "groups"), (1, True, "groups"), (10_000, True, "samples")]
)
def test_blinded_log_probs_are_those_of_a_pass_with_blinded_media(
    start_rank: Start,
    rl_samples: list[Sample],
    make_config: Callable[..., TrainConfig],
    method: str,
    max_tokens: int,
    frozen: bool,
    deal: str,
) -> None:
    settings = (f"algorithm={method}", *LOOSE, f"model.freeze_vision={frozen}", "seed=5")
    config = make_config(*settings, f"learner.max_tokens={max_tokens}")
    rank, samples = start_rank(config), groups(rl_samples)
    rank.publish(3)
    made = [replace(s, weight_version=3) for s in samples]
    scores = rank.score(plan(made, max_tokens, deal))
    for sample in made:
        blind = blinded_sample(sample, config.algorithm.perception, rank._family, "5/3")  # type: ignore[arg-type]
        own = blinded_log_probs(scores, sample.id)
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, alone(rank, blind), atol=2e-6)
        np.testing.assert_allclose(scores[sample.id].log_probs, alone(rank, sample), atol=2e-6)
        assert np.abs(own - scores[sample.id].log_probs).max() > 1e-4


@each_method
def test_masks_repeat_when_a_run_continues_and_change_from_step_to_step(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable[..., TrainConfig], method: str
) -> None:
    found = []
    for version, seed in ((3, 5), (3, 5), (4, 5), (3, 6)):
        rank = start_rank(make_config(f"algorithm={method}", *LOOSE, f"seed={seed}"))
        rank.publish(version)
        scores = rank.score(plan([replace(s, weight_version=version) for s in groups(rl_samples)]))
        found.append(np.concatenate([blinded_log_probs(scores, id) for id in sorted(scores)]))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2]) and not np.array_equal(found[0], found[3])


def test_papo_has_a_mask_for_each_prompt_and_vppo_for_each_response(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable[..., TrainConfig]
) -> None:
    samples, family = groups(rl_samples), start_rank(make_config())._family
    papo, vppo = (make_config(f"algorithm={name}").algorithm.perception for name in ("papo", "vppo"))
    shared = {blinded_sample(s, papo, family, "").prompt.media for s in samples}  # type: ignore[arg-type]
    own = {blinded_sample(s, vppo, family, "").prompt.media for s in samples}  # type: ignore[arg-type]
    assert len(shared) == 2 and len(own) == 6
    for settings, passes in ((papo, 1), (vppo, 3)):
        room = price(tuple(samples[:3]))
        (mine,) = blinded_passes([[tuple(samples[:3])]], 0, settings, family, room, "")  # type: ignore[arg-type]
        assert len(mine) == passes and sum(map(len, mine)) == 3


def test_a_picture_twice_and_a_video_have_masks_of_their_own(
    tiny_model: Path, media: MediaStore, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    family = load_family(tiny_model)
    picture = rl_samples[0].prompt.media[0]
    video = media.put_frames(np.stack(noise(1, 4, 56, 84)), 1, VideoSampling(1.0, 4, 2))
    prompt = ChatRenderer(family, "answer").prompt(
        id="p", kind="", question="what colour is the star ?", answer="red", media=[picture, picture, video]
    )
    papo = make_config("algorithm=papo").algorithm.perception
    blind = blinded_sample(Sample("p#0", prompt, (7,)), papo, family, "0/0").prompt.media  # type: ignore[arg-type]
    first, second, clip = blind
    assert isinstance(first, BlindedMedia) and isinstance(clip, BlindedMedia)
    side = picture.width_px // 14
    assert first != second and first.grid == (side, side) and clip.grid == (4, 6) and clip.frames_per_view == 2
    black = [(media.frames(one)[0] == 0).all(-1).mean() for one in (first, second)]
    assert black[0] == black[1] == pytest.approx(round(0.6 * side**2) / side**2)
    assert (media.frames(clip) == 0).all(-1).reshape(4, -1).mean(-1) == pytest.approx([14 / 24] * 4, abs=0.01)


def test_all_ranks_make_equally_many_passes(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable[..., TrainConfig]
) -> None:
    """Also one without media, or without responses of the version."""
    family, (a, b, c, *_) = start_rank(make_config())._family, groups(rl_samples)
    vppo = make_config("algorithm=vppo").algorithm.perception
    text = replace(c, prompt=Prompt("text", "", "?", "", (), (1, 2)))
    by_shard = [[(a, b), (replace(c, weight_version=1),)], [(text,), (text,)]]
    first, second = blinded_passes(by_shard, 0, vppo, family, 1, "")  # type: ignore[arg-type]
    assert [len(samples) for samples in first] == [1, 1] and second == ((), ())
    first, second = blinded_passes(by_shard, 1, vppo, family, 1, "")  # type: ignore[arg-type]
    assert [len(samples) for samples in first] == [1] and second == ((),)
    assert blinded_passes(by_shard, 2, vppo, family, 1, "") == [(), ()]  # type: ignore[arg-type]


@each_method
def test_text_alone_has_no_blinded_view(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable[..., TrainConfig], method: str
) -> None:
    (seen, *_), words = groups(rl_samples), rl_samples[1].response_token_ids
    other = Sample("text#0", Prompt("text", "", "?", "", (), words), words[:3], (-5.0,) * 3, 1.0)
    rank = start_rank(make_config(f"algorithm={method}", *LOOSE))
    scores = rank.score(plan([seen, other]))
    assert scores[seen.id].blinded_log_probs is not None
    assert scores[other.id].blinded_log_probs is None and scores[other.id].advantage_factor == 1
    calls: list[int] = []
    rank._engine.policy.register_forward_hook(lambda *_: calls.append(1))
    rank.score(plan([other, replace(other, id="text#1")]))
    assert len(calls) == 2  # the old log-probs' alone


@each_method
def test_every_token_is_blinded_at_the_weights_that_made_it(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable[..., TrainConfig], method: str
) -> None:
    staleness = ("algorithm.max_staleness=2", "algorithm.kl.coefficient=0")
    watched = Watched(start_rank(make_config(f"algorithm={method}", *LOOSE, *staleness)))
    rank, samples = watched.rank, groups(rl_samples)
    rank.publish(0)
    watched.train(plan(samples))
    rank.publish(1)
    mixed = [replace(s, switches=((2, 1),)) for s in samples]
    found, old, new = (rank.score(plan(of)) for of in (mixed, samples, [replace(s, weight_version=1) for s in samples]))
    for s in samples:
        joined, before, after = (blinded_log_probs(scores, s.id) for scores in (found, old, new))
        np.testing.assert_allclose(joined[:2], before[:2], atol=1e-6)
        np.testing.assert_allclose(joined[2:], after[2:], atol=1e-6)
        assert np.abs(before - after).max() > 1e-4


def made_up(id: str, dependence: float | None, index: int = 0) -> tuple[Sample, SampleScores]:
    """A response of one token with that much dependence, and one to text alone."""
    media = (BlindedMedia("0", 84, 84, masked=0.5, grid=(6, 6), frames_per_view=1, seed=""),)
    sample = Sample(id, Prompt(id, "", "?", "", media if dependence is not None else (), (1, 2)), (7,), index=index)
    if dependence is None:
        return sample, SampleScores(np.zeros(1, np.float32))
    gap = 3.0
    for _ in range(30):  # Newton's steps down to e^s - s - 1 = dependence
        gap -= (math.expm1(gap) - gap - dependence) / math.expm1(gap)
    return sample, SampleScores(np.zeros(1, np.float32), blinded_log_probs=np.array([gap]))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_factors_are_of_the_update_however_many_ranks_share_it(ranks: int) -> None:
    """Numbers by hand for the first update; in the second all are alike; text alone stays out."""
    first = [made_up(f"a{i}", value) for i, value in enumerate((0.1, 0.2, 0.4, 0.9))]
    second = [made_up("b0", 0.3), made_up("b1", 0.3), made_up("b2", None), made_up("b3", None)]
    counts, updates = Counts(4, 4), []
    for pairs in (first, second):
        samples = [sample for sample, _ in pairs]
        shards = tuple((tuple(samples[rank::ranks]),) for rank in range(ranks))
        updates.append(UpdatePlan(shards, counts))
    split = TrainPlan(tuple(updates))
    scores = {sample.id: found for sample, found in (*first, *second)}
    mine = [{id: scores[id] for id in split.rank_ids(rank)} for rank in range(ranks)]
    found = together(ranks, lambda rank, shards: with_advantage_factors(split, shards, mine[rank], 0.9))
    assert [set(of_rank) for of_rank in found] == [set(of_rank) for of_rank in mine]
    factors = {id: s.advantage_factor for of_rank in found for id, s in of_rank.items()}
    assert [factors[f"a{i}"] for i in range(4)] == pytest.approx([0.9, 0.9333, 1.0, 1.1667], abs=1e-4)
    assert [factors[f"b{i}"] for i in range(4)] == [1, 1, 1, 1]
