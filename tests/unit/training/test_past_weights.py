"""Scoring at the weights that made a batch, after training has gone on."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ral_system.config.schema import RunConfig
from ral_system.errors import GateError
from ral_system.types import Sample
from tests.unit.training.learners import Start, Watched, equal, plan

SETTINGS = ("learner.engine=torch", "learner.world_size=1", "learner.learning_rate=0.01", "learner.warmup_updates=0")
LOOSE = ("algorithm.max_staleness=1", "rollout.max_log_prob_difference=1e9")


@pytest.mark.parametrize("anchor", ["old", "ema"])
def test_a_past_version_scores_as_it_did(
    start_rank: Start, make_config: Callable[..., RunConfig], rl_samples: list[Sample], anchor: str
) -> None:
    watched = Watched(start_rank(make_config(*SETTINGS, *LOOSE, f"algorithm.attention.anchor={anchor}")))
    rank, split = watched.rank, plan(rl_samples, 2, 3)
    rank.publish(0)
    then = rank.score(split.rank_samples(0))
    watched.train(split)
    rank.publish(1)
    trained = watched.weights()
    again = rank.score(split.rank_samples(0))  # the samples say that version 0 made them
    assert equal(watched.weights(), trained)
    for id, scores in then.items():
        assert np.array_equal(again[id].log_probs, scores.log_probs)
        assert again[id].attention[0].version == 0
        if anchor == "old":
            assert np.array_equal(again[id].attention[0].values, scores.attention[0].values)
        else:  # the average has moved on since, whichever weights made the batch
            assert not np.array_equal(again[id].attention[0].values, scores.attention[0].values)
    fresh = [replace(s, weight_version=1) for s in rl_samples]
    now = rank.score(plan(fresh, 2, 3).rank_samples(0))
    assert any(not np.array_equal(now[id].log_probs, then[id].log_probs) for id in then)


def test_what_is_older_than_allowed_is_gone(
    start_rank: Start, make_config: Callable[..., RunConfig], rl_samples: list[Sample]
) -> None:
    rank = start_rank(make_config(*SETTINGS, *LOOSE))
    for version in range(3):
        rank.publish(version)
    with pytest.raises(GateError, match="weights 0 are asked for, and these are kept: 1, 2; the batch is too stale"):
        rank.score((tuple(rl_samples),))


def test_a_batch_of_two_versions_is_refused(
    start_rank: Start, make_config: Callable[..., RunConfig], rl_samples: list[Sample]
) -> None:
    rank = start_rank(make_config(*SETTINGS, *LOOSE))
    rank.publish(0)
    rank.publish(1)
    mixed = (rl_samples[0], replace(rl_samples[1], weight_version=1))
    with pytest.raises(GateError, match="a batch mixes rollouts of the weights 0, 1"):
        rank.score((mixed,))
