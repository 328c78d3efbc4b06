"""Before a checkpoint, an evaluation and the end nothing is generated ahead."""

from collections.abc import Callable

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.controller.stages import _steps_until_pause


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
def test_steps_until_the_next_pause(
    make_config: Callable[..., TrainConfig], checkpoint: int, evaluation: int, steps: int, expected: list[int]
) -> None:
    config = make_config(f"checkpoint.every={checkpoint}", f"evaluation.every={evaluation}", f"algorithm.steps={steps}")
    assert [_steps_until_pause(step, config) for step in range(1, steps + 1)] == expected
