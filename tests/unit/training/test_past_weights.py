"""Scoring at the weights that made a batch, after training has gone on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ral_system.config.commands import TrainConfig
from ral_system.data.chat import ChatRenderer
from ral_system.errors import GateError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.types import Sample
from tests.unit.training.learners import Start, Watched, equal, plan

SETTINGS = ("learner.engine=torch", "learner.world_size=1", "learner.learning_rate=0.01", "learner.warmup_updates=0")
LOOSE = ("algorithm.max_staleness=1", "rollout.log_prob_gate.token=1e9")


@pytest.mark.parametrize("anchor", ["old", "ema"])
def test_a_past_version_scores_as_it_did(
    start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample], anchor: str
) -> None:
    watched = Watched(start_rank(make_config(*SETTINGS, *LOOSE, f"algorithm.attention.anchor={anchor}")))
    rank, split = watched.rank, plan(rl_samples, 2, 3)
    rank.publish(0)
    then = rank.score(split)
    watched.train(split)
    rank.publish(1)
    trained = watched.weights()
    again = rank.score(split)  # the samples say that version 0 made them
    assert equal(watched.weights(), trained)
    for id, scores in then.items():
        assert np.array_equal(again[id].log_probs, scores.log_probs)
        assert again[id].attention[0].version == 0
        if anchor == "old":
            assert np.array_equal(again[id].attention[0].values, scores.attention[0].values)
        else:  # the average has moved on since, whichever weights made the batch
            assert not np.array_equal(again[id].attention[0].values, scores.attention[0].values)
    fresh = [replace(s, weight_version=1) for s in rl_samples]
    now = rank.score(plan(fresh, 2, 3))
    assert any(not np.array_equal(now[id].log_probs, then[id].log_probs) for id in then)


def test_what_is_older_than_allowed_is_gone(
    start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample]
) -> None:
    rank = start_rank(make_config(*SETTINGS, *LOOSE))
    for version in range(3):
        rank.publish(version)
    with pytest.raises(GateError, match="scoring a batch needs weights 0, but the learner keeps only: 1, 2"):
        rank.score(plan(rl_samples, 1, 3))


@pytest.mark.parametrize("rows", ["generated", "predicting"])
@pytest.mark.parametrize("record", ["dense", "top_k"])
def test_every_token_is_scored_at_the_weights_that_made_it(
    start_rank: Start, make_config: Callable[..., TrainConfig], rl_samples: list[Sample], rows: str, record: str
) -> None:
    """Whole batches at each version say what is to be found where: token by token, and row by row of attention."""
    kept = (f"algorithm.attention.rows={rows}", f"algorithm.attention.record={record}")
    watched = Watched(start_rank(make_config(*SETTINGS, *LOOSE, "algorithm.max_staleness=3", *kept)))
    rank, whole = watched.rank, {}
    for version in range(3):
        rank.publish(version)
        made_by_it = plan([replace(s, weight_version=version) for s in rl_samples], 2, 3)
        whole[version] = rank.score(made_by_it)
        watched.train(made_by_it)
    switches: list[tuple[tuple[int, int], ...]] = [(), ((1, 1),), ((1, 2),), ((1, 1), (2, 2))]
    mixed = [replace(s, switches=switches[i % 4]) for i, s in enumerate(rl_samples)]
    rank.publish(3)
    split = plan(mixed, 2, 3)
    found = rank.score(split)
    for sample in mixed:
        made = sample.token_versions()
        assert made[0] == 0 and made[-1] == (sample.switches or ((0, 0),))[-1][1]
        expected = [whole[version][sample.id].log_probs[t] for t, version in enumerate(made)]
        np.testing.assert_allclose(found[sample.id].log_probs, expected, atol=1e-6)  # micro-batches of other lengths
        (attention,) = found[sample.id].attention
        assert attention.version == 0
        for t, version in enumerate(made):
            (then,) = whole[version][sample.id].attention
            np.testing.assert_allclose(attention.values[t], then.values[t], atol=1e-6)
            if record == "top_k":
                np.testing.assert_allclose(attention.tail[t], then.tail[t], atol=1e-6)  # type: ignore[index]
        entropies = [whole[version][sample.id].row_statistics["entropy"][t] for t, version in enumerate(made)]
        np.testing.assert_allclose(found[sample.id].row_statistics["entropy"], entropies, atol=1e-5)
    watched.train(split)  # the records are of the samples' first weights, which is what the divergence checks


def test_rows_of_a_question_with_a_picture_inside_are_read_at_the_weights_that_began_the_response(
    start_rank: Start, make_config: Callable[..., TrainConfig], tiny_model: Path, media: MediaStore
) -> None:
    rows = "algorithm.attention.rows=instruction"
    rank = start_rank(make_config(*SETTINGS, *LOOSE, "algorithm.max_staleness=2", rows))
    renderer = ChatRenderer(load_family(tiny_model), "answer")
    picture = media.put(Image.effect_noise((56, 56), 60).convert("RGB"))
    prompt = renderer.prompt(id="p", kind="", question="what <image> is at a1 ?", answer="red", media=[picture])
    response = renderer.response("<answer> red </answer>")
    sample = Sample("p#0", prompt, response, (-5.0,) * len(response), advantage=1.0)
    rank.publish(0)
    at_first = rank.score(plan([sample], 1, 1))[sample.id].attention[0]
    rank.update(plan([sample], 1, 1).updates[0], rank.score(plan([sample], 1, 1)), rank.score(plan([sample], 1, 1)))
    rank.publish(1)
    switched = rank.score(plan([replace(sample, switches=((2, 1),))], 1, 1))[sample.id].attention[0]
    assert len(at_first.values) == 5
    np.testing.assert_array_equal(switched.values, at_first.values)
