"""Evidence in the learner: how much of the attention is on it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from ral_system.training.plan import plan_updates
from ral_system.types import Region, Sample, TrainPlan
from tests.unit.training.learners import Start, Watched

pytestmark = pytest.mark.usefixtures("one_thread")


def plan(samples: Sequence[Sample], max_tokens: int = 10_000) -> TrainPlan:
    return plan_updates(list(samples), updates=1, shards=1, max_tokens=max_tokens, deal="groups")


def seen(samples: Sequence[Sample], *evidence: Region) -> list[Sample]:
    return [replace(s, prompt=replace(s.prompt, evidence=evidence)) for s in samples]


def test_the_mass_on_evidence_is_reported_by_sign(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    """On all of a picture it is 1, on its parts it adds up to that; prompts without evidence have none."""
    rank = Watched(start_rank(make_config("algorithm=grpo", "learner.learning_rate=0")))

    def metrics(*evidence: Region) -> dict[str, float]:
        return rank.train(plan(seen(rl_samples[:6], *evidence)))[0]

    whole, left, right = (metrics(Region(a, 0, b, 1)) for a, b in ((0, 1), (0, 0.3), (0.3, 1)))
    for suffix in ("", "_positive", "_negative"):
        names = [f"attention/{name}{suffix}" for name in ("evidence_mass", "evidence_area", "pointing")]
        assert [whole[name] for name in names] == pytest.approx([1, 1, 1])
        for name in names[:2]:
            assert 0 < left[name] < 1 and left[name] + right[name] == pytest.approx(1)
    unknown = metrics()
    assert "attention/visual_mass" in unknown
    assert not any("evidence" in name or "pointing" in name for name in unknown)
    half_known = rank.train(plan([*rl_samples[:3], *seen(rl_samples[3:6])]))[0]
    known = rank.train(plan(rl_samples[:3]))[0]
    assert half_known["attention/evidence_mass"] == pytest.approx(known["attention/evidence_mass"], rel=1e-4)
