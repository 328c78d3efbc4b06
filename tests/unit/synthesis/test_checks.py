"""What a role's text must be, and the reason that is given where it is not."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral_system.synthesis.checks import check_anchored, check_description, check_reasoning, kept_words

ANCHOR = re.compile(r"look( back)? at", re.IGNORECASE)
GOOD = "<think> the 7 is in a1 and it is red </think> <answer> red </answer>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a red 7", None),
        ("  ", "empty"),
        ("a <answer> red", "holds a tag of the response template"),
        ("a <|image_pad|> here", "holds a special token"),
    ],
)
def test_a_description_is_words(text: str, reason: str | None) -> None:
    assert check_description(text) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        (GOOD.replace("> red <", "> RED <"), None),
        ("", "not <think> … </think> <answer> … </answer>"),
        ("it is red", "not <think> … </think> <answer> … </answer>"),
        (f"Sure! {GOOD}", "not <think> … </think> <answer> … </answer>"),
        (GOOD.replace("> red <", "> blue <"), "another answer than the right one"),
        (GOOD.replace("a1", "<|im_end|>"), "holds a special token"),
    ],
)
def test_a_reasoning_is_a_response_with_the_right_answer(text: str, reason: str | None) -> None:
    assert check_reasoning(text, "red") == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD.replace("the 7", "look back at the 7: it"), None),
        (GOOD, "no anchor was put in"),
        (GOOD.replace("> red <", "> look at red <"), "another answer than the right one"),
        (GOOD.replace("red </think>", "LOOK AT red </think>"), None),
        ("<think> look at the picture </think> <answer> red </answer>", "the reasoning was rewritten"),
        ("look at it", "not <think> … </think> <answer> … </answer>"),
    ],
)
def test_an_anchored_text_is_the_same_reasoning_with_an_anchor_more(text: str, reason: str | None) -> None:
    assert check_anchored(text, "red", GOOD, ANCHOR) == reason


def test_an_anchor_that_was_there_before_does_not_count() -> None:
    before = GOOD.replace("the 7", "look at the 7")
    assert check_anchored(before, "red", before, ANCHOR) == "no anchor was put in"
    twice = before.replace("in a1", "in a1, look back at a1,")
    assert check_anchored(twice, "red", before, ANCHOR) is None


def test_kept_words_are_counted_in_their_order() -> None:
    assert kept_words("a b c d", "x a y b c z d") == 1
    assert kept_words("a b c d", "d c b a") == 0.25
    assert kept_words("a b c d", "a b") == 0.5
    assert kept_words("", "a") == 1


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
def test_kept_words_are_the_longest_common_subsequence(before: list[str], after: list[str]) -> None:
    lengths = [[0] * (len(after) + 1) for _ in range(len(before) + 1)]
    for i, a in enumerate(before):
        for j, b in enumerate(after):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if a == b else max(lengths[i][j + 1], lengths[i + 1][j])
    expected = lengths[-1][-1] / len(before) if before else 1
    assert kept_words(" ".join(before), " ".join(after)) == pytest.approx(expected)
