"""Before a checkpoint, an evaluation and the end nothing is generated ahead."""

import pytest

from ral_system.controller.pauses import Pauses


@pytest.mark.parametrize(
    ("checkpoint", "evaluation", "steps", "expected"),
    [
        (4, 0, 10, [4, 3, 2, 1, 4, 3, 2, 1, 2, 1]),
        (4, 3, 7, [3, 2, 1, 1, 2, 1, 1]),  # pauses after 3, 4, 6 and 7
        (100, 0, 3, [3, 2, 1]),
        (1, 0, 3, [1, 1, 1]),
        (2, 5, 6, [2, 1, 2, 1, 1, 1]),
    ],
)
def test_steps_until_the_next_pause(checkpoint: int, evaluation: int, steps: int, expected: list[int]) -> None:
    pauses = Pauses(steps, checkpoint, evaluation, max_staleness=1)
    assert [pauses.steps_until(step) for step in range(1, steps + 1)] == expected


@pytest.mark.parametrize(
    ("staleness", "expected"), [(0, [True, True, True, True, False]), (1, [False, True, True, True, False])]
)
def test_an_alarm_stops_a_run_where_nothing_is_generated_ahead(staleness: int, expected: list[bool]) -> None:
    pauses = Pauses(5, checkpoint_every=2, evaluate_every=3, max_staleness=staleness)
    assert [pauses.may_stop(step) for step in range(1, 6)] == expected
