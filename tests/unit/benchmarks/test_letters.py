"""Which letter an answer states, by each way of writing it."""

import pytest

from ral_system.benchmarks.letters import (
    MMMU,
    checked_letter,
    common_letter,
    first_letter,
    lettered,
    stated_letter,
    without_letters,
)
from ral_system.errors import DataError
from tests.unit import answer_sheet
from tests.unit.answer_sheet import LETTERS

OPTIONS = ("a red cube", "a blue ball", "the green cone")


@pytest.mark.parametrize(
    ("answer", "common", "mmmu"),
    [
        ("B", "B", "B"),
        (" B.\n", "B", "B"),
        ("(B)", "B", "B"),
        ("(A) or rather (B)", "B", "B"),  # the last in brackets
        ("(A), not B", "A", "A"),  # brackets come first
        ("A B A", "A", "A"),
        ("The answer is B", "B", "B"),
        ("Answer: B", "B", "B"),
        ("B. a blue ball", "B", "B"),
        ("A. B. x", "A", "A"),  # MMMU looks for the last alone, finds none, and takes the first
        ("B) a blue ball", "B", None),
        ("the USA, so C.x", "C", "C"),
        ("in the USA today", None, "A"),  # MMMU takes the end of a word
        ("b", "B", None),
        ("(b).", "B", None),
        ("D", None, None),
        ("d", None, None),
        ("**B**", "B", None),
        ("**B.** a blue ball", "B", "B"),
        ("The answer is **B**: it is round", "B", None),
        (r"$\boxed{\text{B}}$", "B", None),
        ("B: a blue ball", "B", None),
        ("a blue ball", "B", None),  # MMMU reads words in more than five
        ("it has to be the Green Cone", "C", "C"),
        ("neither a red cube nor a blue ball lies here", "B", "B"),
        ("I really do not know what this shows", None, None),
        ("", None, None),
    ],
)
def test_the_stated_letter(answer: str, common: str | None, mmmu: str | None) -> None:
    assert common_letter(answer, OPTIONS) == common
    assert stated_letter(answer, OPTIONS, MMMU) == mmmu


@pytest.mark.parametrize(("answer", "letter"), [(answer, letter) for answer, _, letter in LETTERS])
def test_letters_are_read_as_training_rewards_them(answer: str, letter: str | None) -> None:
    assert common_letter(answer, answer_sheet.OPTIONS) == letter


def test_words_of_two_options_choose_none() -> None:
    assert common_letter("Red", ("red", "red.", "blue")) is None
    assert common_letter("-5", ("5", "-5")) == "B"
    assert common_letter("E. coli", ("red", "e. coli")) == "B"  # the letter E is not an option


def test_the_first_capital() -> None:
    assert first_letter("The best answer is C. Not A.", "ABCD") == "C"
    assert first_letter("Best option: D", "ABCD") == "D"
    assert first_letter("Because of C", "ABCD") == "B"  # as the rule has it
    assert first_letter("E", "ABCD") is None and first_letter("c", "ABCD") is None


def test_options_are_written_with_letters_and_read_without() -> None:
    assert lettered(("red", "blue")) == "A. red\nB. blue"
    assert lettered(("red",), "({}) {}") == "(A) red"
    assert without_letters(("A. red", "B. blue")) == ("red", "blue")
    assert without_letters(("(A) red", "(B) blue")) == ("red", "blue")
    assert without_letters(("A. red", "A. blue")) == ("A. red", "A. blue")
    assert without_letters(("", "B. blue")) == ("", "B. blue")


def test_a_reference_is_one_of_the_options() -> None:
    assert checked_letter("(B)", OPTIONS) == "B" and checked_letter("C", OPTIONS) == "C"
    for wrong in ("D", "b", "", "AB", "red"):
        with pytest.raises(DataError, match="not one of the 3 options"):
            checked_letter(wrong, OPTIONS)
