"""Which rollouts of a step are kept with their texts."""

import pytest

from ral_system.controller.rl import _recorded
from ral_system.types import Completion, FinishReason, Prompt, RewardResult, RewardStatus, Rollout


def group(name: str, *statuses: RewardStatus) -> list[Rollout]:
    prompt = Prompt(name, "k", "q", "a", (), (1,))
    return [
        Rollout(
            prompt,
            Completion(name, i, (7,), (-0.5,), "text", FinishReason.STOP, 0),
            RewardResult(f"{name}#{i}", {}, 0.0, status),
            0.0,
        )
        for i, status in enumerate(statuses)
    ]


OK, TIMEOUT = RewardStatus.OK, RewardStatus.TIMEOUT


@pytest.mark.parametrize(("groups", "expected"), [(0, []), (1, ["b"]), (2, ["b", "a"]), (9, ["b", "a", "c"])])
def test_whole_groups_are_kept_those_without_a_verdict_first(groups: int, expected: list[str]) -> None:
    rollouts = [*group("a", OK, OK), *group("b", OK, TIMEOUT), *group("c", OK, OK)]
    assert [r.completion.id for r in _recorded(rollouts, groups)] == [
        f"{name}#{i}" for name in expected for i in (0, 1)
    ]
