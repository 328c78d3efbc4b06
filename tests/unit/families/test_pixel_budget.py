"""Sizes that models see."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ral_system.errors import DataError
from ral_system.families.qwen_vl.pixel_budget import QwenPixelBudget

BUDGET = QwenPixelBudget(28, 56 * 56, 28 * 28 * 1280, processor=(56 * 56, 28 * 28 * 1280))
SIDES = st.integers(2, 6000)


@given(SIDES, SIDES)
def test_the_model_s_processor_leaves_them_alone(width: int, height: int) -> None:
    try:
        found = BUDGET.size(width, height)
    except DataError as error:
        assert str(error) == f"too long and thin: {width}x{height} px"
        assert max(width, height) / min(width, height) > 100
        return
    assert BUDGET.size(*found) == found
    assert found[0] % 28 == found[1] % 28 == 0
    assert 56 * 56 <= found[0] * found[1] <= 28 * 28 * 1280


@pytest.mark.parametrize(
    ("given", "found"),
    [((84, 84), (84, 84)), ((640, 480), (644, 476)), ((10, 10), (56, 56)), ((4000, 3000), (1148, 840))],
)
def test_by_hand(given: tuple[int, int], found: tuple[int, int]) -> None:
    """640/28 = 22.9, so 23; 12 million pixels are 11.96 budgets, so each side is divided by 3.46."""
    assert BUDGET.size(*given) == found


@pytest.mark.parametrize("given", [(20000, 99), (5800, 29)])
def test_very_long_and_thin_is_refused(given: tuple[int, int]) -> None:
    """The second is 200 to 1, and 207 to 1 in whole factors, which the processor would refuse."""
    with pytest.raises(DataError, match=f"too long and thin: {given[0]}x{given[1]} px"):
        BUDGET.size(*given)


@pytest.mark.parametrize("tokens", [4, 128, 1280])
@given(st.integers(10, 4000), st.integers(10, 4000))
def test_bounds_that_are_equal_refuse_no_ordinary_picture(tokens: int, width: int, height: int) -> None:
    """Checked at both ends of the processor's range, where it resizes pictures a factor beyond them."""
    pixels, processor = tokens * 28 * 28, BUDGET.processor
    assume(max(width, height) <= 2 * min(width, height))
    found = QwenPixelBudget(28, pixels, pixels, processor).size(width, height)
    assert BUDGET.size(*found) == found
    assert pixels / 3 <= found[0] * found[1] <= pixels * 2.25


def test_equal_bounds_by_hand() -> None:
    """640x480 is 3.06 budgets: 13.06 x 9.8 factors, 13 x 9 whole ones."""
    assert QwenPixelBudget(28, 100352, 100352, BUDGET.processor).size(640, 480) == (364, 252)


def test_what_fits_no_bound_by_its_length_is_refused() -> None:
    for processor in (BUDGET.processor, None):
        with pytest.raises(DataError, match="too long and thin: 2800x28 px"):
            QwenPixelBudget(28, 28 * 28, 28 * 28 * 64, processor).size(2800, 28)


def test_what_the_processor_would_resize_again_is_refused() -> None:
    """A processor that has one size for all goes back and forth between 56 x 28 and 84 x 56 px."""
    with pytest.raises(DataError, match="640x480 px"):
        QwenPixelBudget(28, 56 * 56, 56 * 56, processor=(56 * 56, 56 * 56)).size(640, 480)


def test_frames_stay_as_they_are() -> None:
    """Theirs are the configured bounds alone: one factor stays one."""
    assert QwenPixelBudget(28, 28 * 28, 28 * 28).size(80, 80) == (28, 28)
    assert QwenPixelBudget(28, 28 * 28, 28 * 28, BUDGET.processor).size(80, 80) == (56, 56)
