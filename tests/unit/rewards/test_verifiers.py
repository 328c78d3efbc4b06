"""Each verifier on answers as models write them, with scores worked by hand."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral_system import conf
from ral_system.config.commands import TrainConfig
from ral_system.errors import ConfigError
from ral_system.registry import VERIFIERS
from ral_system.rewards.judge import judge
from ral_system.rewards.response import Response
from ral_system.rewards.verifiers.interval import read_interval
from ral_system.rewards.verifiers.multiple_choice import letter
from ral_system.rewards.verifiers.numbers import read_number
from tests.unit.answer_sheet import LETTERS
from tests.unit.rewards.settings import reward_config

NAMES = VERIFIERS.names


def scored(name: str, given: str, reference: str, **settings: object) -> float:
    config = reward_config(verifier=name, **settings)
    return VERIFIERS.get(config.verifier)(given, reference, config)


def test_every_verifier_is_a_file_and_every_choice_of_reward_has_one() -> None:
    folder = Path(importlib.import_module("ral_system.rewards.verifiers").__file__ or "").parent
    helpers = {"__init__", "numbers", "spelled", "units", "formula", "markup"}
    assert {f.stem for f in folder.glob("*.py")} - helpers == set(NAMES)
    choices = {f.stem: f.read_text() for f in (Path(conf.__file__).parent / "reward").glob("*.yaml")}
    named = {name for name, text in choices.items() if f"\nverifier: {name}\n" in f"{text}\n"}
    assert choices.keys() - named == {"default", "avar", "video_r1", "laser_pays_length"} and named <= set(NAMES)


@pytest.mark.parametrize(
    ("given", "reference", "score"),
    [
        ("red", "red", 1),
        (" RED\n", "red", 1),
        ("red  star", "Red star", 1),
        ("STRASSE", "straße", 1),
        ("reds", "red", 0),
        ("red star", "star red", 0),
        ("redstar", "red star", 0),
        ("", "red", 0),
    ],
)
def test_exact_ignores_case_and_whitespace_only(given: str, reference: str, score: int) -> None:
    assert scored("exact", given, reference) == score


@pytest.mark.parametrize(("text", "found"), [(text, found) for text, found, _ in LETTERS])
def test_the_letter_of_an_option(text: str, found: str | None) -> None:
    assert letter(text) == found
    assert scored("multiple_choice", text, "B") == float(found == "B")
    assert scored("multiple_choice", text, "(B) a red cube") == float(found == "B")


def test_a_reference_is_known_by_its_leading_letter() -> None:
    assert scored("multiple_choice", "B", "B. Vitamin C.") == 1
    assert scored("multiple_choice", "C", "B. Vitamin C.") == 0
    assert scored("multiple_choice", "b", "[B] red") == 1


def test_a_choice_without_letters_is_by_its_words() -> None:
    assert scored("multiple_choice", "Red  Cube", "red cube") == 1
    assert scored("multiple_choice", "**Yes.**", "Yes") == scored("multiple_choice", "A, C", "A, C") == 1
    assert scored("multiple_choice", "A", "red cube") == 0
    assert scored("multiple_choice", "?!", "?!") == 1 and scored("multiple_choice", "", "?!") == 0
    assert scored("multiple_choice", "I, claudius", "I, Claudius") == 1
    assert scored("multiple_choice", "I", "I, Claudius") == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42.0),
        (" -3.50 ", -3.5),
        ("\N{MINUS SIGN}2", -2.0),
        ("1,024", 1024.0),
        ("1,234,567.5", 1234567.5),
        ("$12", 12.0),
        ("3/4", 0.75),
        ("12%", 0.12),
        ("12 %.", 0.12),
        ("**12%**", 0.12),
        (r"\boxed{12\%}", 0.12),
        ("12 percent", 0.12),
        ("12% of the apples", 0.12),
        ("US$12", 12.0),
        ("The answer is 3/4", 0.75),
        ("**3/4** cup", 0.75),
        ("about 7 apples", 7.0),
        ("6.02e23", 6.02e23),
        (".5", 0.5),
        ("7.", 7.0),
        ("3 or 4", None),
        ("1,2", None),
        ("12,34", None),
        ("1/0", None),
        ("1e999", None),
        ("seven", 7.0),
        ("nan", None),
        ("", None),
        # signs
        ("- 5", -5.0),
        ("\N{EN DASH}5", -5.0),
        ("\N{EM DASH} 5", -5.0),
        ("-$5", -5.0),
        ("- $5", -5.0),
        ("$-5", -5.0),
        ("about -$5", -5.0),
        ("Minus 5 degrees", -5.0),
        ("x = - 5", -5.0),
        ("x=-5", -5.0),
        ("it is - 5", None),
        ("-(5)", None),
        ("--5", None),
        ("=> 5", 5.0),
        ("3-5", None),
        ("3 - 5", None),
        ("3\N{EN DASH}5", None),
        ("10 minus 5", None),
        ("Covid-19", None),
        # another number than the digits say
        ("\N{NOT EQUAL TO}5", None),
        (">5", None),
        ("x < 5", None),
        (r"\geq 5", None),
        ("not 5", None),
        ("it isn't 5", None),
        ("at least 5", None),
        ("cannot be 5", None),
        ("1\u00bd", 1.5),
        ("2\u03c0", None),
        ("\u221a4", None),
        ("sqrt(16)", None),
        ("(-2)^2", None),
        ("2^0.5", None),
        ("1.5M", None),
        ("1.000.000", None),
        ("0x10", None),
        ("5 thousandths", None),
        ("2 hundred thousand", None),
        ("1.5 million", 1_500_000.0),
        ("-2 Thousand apples", -2000.0),
        ("5 millionaires", 5.0),
        # more digits than those of the number
        ("5 cm^2", 5.0),
        ("5 m/s^{2}", 5.0),
        ("5 m2", 5.0),
        ("AB = 5", 5.0),
        ("x1 = 5", None),
        ("H2O", None),
        ("1 000", 1000.0),
        ("x^2", None),
        ("1 0000", None),
        ("1 1/2", 1.5),
        ("-1 1/2", -1.5),
        ("3 / -4", None),
        ("10^3", 1000.0),
        ("-10^{2} kg", -100.0),
        ("10^-2", 0.01),
        ("10^99999", None),
        ("0^-1", None),
    ],
)
def test_numbers_as_people_write_them(text: str, value: float | None) -> None:
    found = read_number(text)
    assert found == (value if value is None else pytest.approx(value))


@given(st.floats(-1e9, 1e9, allow_nan=False))
def test_a_printed_number_is_read_back(value: float) -> None:
    assert read_number(repr(value)) == value
    assert read_number(f"{value:,.3f}") == pytest.approx(value, abs=5.1e-4)


def test_a_number_within_its_tolerance() -> None:
    tolerance = {"absolute": 0.5, "relative": 0.01}  # of 200: 0.5 + 2
    assert [scored("numeric", given, "200", tolerance=tolerance) for given in ("202.5", "202.6", "197.5", "x")] == [
        1,
        0,
        1,
        0,
    ]
    assert scored("numeric", "0.3", "0.30") == 1 and scored("numeric", "0.31", "0.3") == 0


def test_numbers_of_video_r1_may_be_half_a_hundredth_apart(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config("reward=video_r1").reward.of_kind("numerical")
    judged = VERIFIERS.get(config.verifier)
    assert [judged(given, "3.14", config) for given in ("3.1416", "3.144", "3.14", "3.15", "3.1")] == [1, 1, 1, 0, 0]


def test_a_number_is_better_the_closer() -> None:
    assert scored("regression", "80", "100") == pytest.approx(0.8)
    assert scored("regression", "-120", "-100") == pytest.approx(0.8)
    assert scored("regression", "250", "100") == 0 and scored("regression", "?", "100") == 0
    assert scored("regression", "0", "0") == 1 and scored("regression", "0.1", "0") == 0


@pytest.mark.parametrize(
    ("given", "reference", "score"),
    [
        ("0.5", r"\frac{1}{2}", 1),
        ("1/2", "0.5", 1),
        (r"$\frac{2}{4}$", "1/2", 1),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", 1),
        ("x^2 - 1", "(x-1)*(x+1)", 1),
        (r"\{1, 2\}", r"\{2, 1\}", 1),
        ("x = 3", "3", 1),
        ("2*sqrt(2)", r"\sqrt{8}", 1),
        ("2pi", r"2\pi", 1),
        ("(1, 2)", "$(1, 2)$", 1),
        ("about 7 apples", "7", 1),
        ("x^2 - 1", "1", 0),
        ("it is x^2 - 1", "1", 0),
        ("it is x - 1", "1", 0),
        ("$2xy$", "2xy", 1),
        ("2", "2xy", 0),
        ("3 cm", "3", 1),
        ("5 cm^2", "5", 1),
        ("**5**", "5", 1),
        ("AB = 5", "5", 1),
        ("5", "AB = 5", 1),
        ("The answer is 1/3", r"\frac{1}{3}", 1),
        (r"the length is 2\sqrt{3}", r"\sqrt{12}", 1),
        (r"5\sqrt{2} units", r"\sqrt{50}", 1),
        ("2\u221a3", r"\sqrt{12}", 1),
        (r"\angle ABC = 60^\circ", "60", 1),
        ("x = 5 or x = 6", "6", 0),
        ("at least 5", "5", 0),
        ("we get x - 1 apples", "1", 0),
        ("about 12 %", "0.12", 1),
        ("it is minus 5", "-5", 1),
        ("it is minus 5", "5", 0),
        ("1.5 million people", "1500000", 1),
        ("0.51", r"\frac{1}{2}", 0),
        (r"\sqrt{7}", r"\sqrt{8}", 0),
        ("no idea", "3", 0),
    ],
)
def test_mathematical_equivalence(given: str, reference: str, score: int) -> None:
    assert scored("mathematics", given, reference) == score


def test_text_that_was_read_off() -> None:
    # no stop here | not stop her: one word too many, one wrong, of three
    assert scored("ocr", "not stop her", "stop here now") == pytest.approx(1 - 3 / 3)
    assert scored("ocr", "stop here", "stop here now") == pytest.approx(1 - 1 / 3)
    assert scored("ocr", "stop there right now", "stop here now") == pytest.approx(1 - 2 / 3)
    assert scored("ocr", "stop  here now", "stop here now") == 1
    assert scored("ocr", "a b c d e f g", "stop") == 0


def test_free_text_by_its_overlap() -> None:
    # unigrams: 2 of 3 and 2 of 2; bigrams: 1 of 2 and 1 of 1; longest common subsequence: 2 of 3 and 2 of 2
    f1, f2 = 2 * (2 / 3) / (2 / 3 + 1), 2 * (1 / 2) / (1 / 2 + 1)
    assert scored("free_form", "red cubes stand", "red cube") == pytest.approx((f1 + f2 + f1) / 3)
    assert scored("free_form", "a red cube", "a red cube") == pytest.approx(1)
    assert scored("free_form", "blue", "a red cube") == 0
    assert scored("free_form", "cube", "cube") == pytest.approx(1)  # one word has no pairs to compare


def test_boxes_by_intersection_over_union() -> None:
    # 10 x 10 and 10 x 10, shifted by (5, 5): 25 shared of 175
    assert scored("box", "[5, 5, 15, 15]", "[0, 0, 10, 10]") == pytest.approx(25 / 175)
    assert scored("box", "(0,0),(10,10)", "0 0 10 10") == 1
    assert scored("box", '{"bbox_2d": [-2.5, 0, 7.5, 10]}', "[0, 0, 10, 10]") == pytest.approx(75 / 125)
    assert scored("box", "[-2.5, 0, 7.5, 10]", "[0, 0, 10, 10]") == pytest.approx(75 / 125)
    assert scored("box", "[\N{EN DASH}2.5, 0, 7.5, 10]", "[0, 0, 10, 10]") == pytest.approx(75 / 125)
    for bad in ("[20, 20, 30, 30]", "[10, 10, 0, 0]", "[1, 2, 3]", "nothing"):
        assert scored("box", bad, "[0, 0, 10, 10]") == 0


def test_intervals_by_intersection_over_union() -> None:
    assert scored("interval", "5 to 15 s", "0-10") == pytest.approx(5 / 15)
    assert scored("interval", "[00:05, 00:15]", "from 0.0 to 10.0") == pytest.approx(5 / 15)
    assert scored("interval", "20, 30", "0, 10") == 0 and scored("interval", "10, 5", "0, 10") == 0
    assert scored("interval", "5", "0, 10") == 0
    assert read_interval("1:02:03 - 1:02:10.5") == (3723, 3730.5)
    assert read_interval("-3 to 10") == read_interval("from -3 to 10") == (-3, 10)
    assert read_interval("3-10") == read_interval("3 -10") == read_interval("Answer - 3 - 10") == (3, 10)


def test_your_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "importable"))
    assert scored("function", "red star", "red", function="own_verifier:first_word") == 1
    assert scored("function", "blue", "red", function="own_verifier:first_word") == 0
    for path, reason in {
        "own_verifier:nothing": "own_verifier.py has no nothing; correct the name",
        "no_such_module:f": "No module named 'no_such_module'; put the module into ",
        "own_verifier:WORDS": "WORDS is 3; name a function",
        "own_broken_verifier:f": "importing own_broken_verifier raised ModuleNotFoundError: .*; fix the module",
    }.items():
        with pytest.raises(ConfigError, match=f"reward.function={path}: .*{reason}"):
            scored("function", "a", "b", function=path)
    for path, reason in {
        "five": r"returned 5.0; it must return a number in \[0, 1\]",
        "nothing_at_all": r"returned None; it must return a number in \[0, 1\]",
        "broken": "raised KeyError: 'b'",
    }.items():
        with pytest.raises(ConfigError, match=f"reward.function=own_verifier:{path} {reason}"):
            scored("function", "a", "b", function=f"own_verifier:{path}")


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("numeric", "many"),
        ("regression", "1 or 2"),
        ("mathematics", ""),
        ("mathematics", "some idea"),
        ("ocr", " "),
        ("free_form", "?!"),
        ("box", "[3, 3, 1, 1]"),
        ("interval", "10 to 5"),
        ("interval", "soon"),
    ],
)
def test_a_reference_that_cannot_be_read_is_an_error(name: str, reference: str) -> None:
    with pytest.raises(ValueError, match="the reference answer"):
        scored(name, "1", reference)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "function"])
@given(text=st.text(max_size=60))
def test_any_answer_scores_between_0_and_1(name: str, text: str) -> None:
    reference = {"box": "[0, 0, 4, 4]", "interval": "1-4", "multiple_choice": "B"}.get(name, "4")
    found = scored(name, text, reference)
    assert math.isfinite(found) and 0 <= found <= 1


@pytest.mark.parametrize("name", ["numeric", "regression", "mathematics", "box", "interval"])
@pytest.mark.parametrize(
    "given",
    [
        "9" * 400 + "/1",
        "9" * 5000,
        "1:" + "9" * 5000 + ":1, 3",
        "9" * 400 + "e9",
        "2^" + "9" * 5000,
        "-" * 500,
    ],
)
def test_endless_digits_score_and_are_no_error(name: str, given: str) -> None:
    reference = {"box": "[0, 0, 4, 4]", "interval": "1-4"}.get(name, "4")
    assert 0 <= scored(name, given, reference) <= 1


LONG = [
    *("ab" + " " * 200_000 + "!", "\\boxed{" + " " * 200_000, "5" + " " * 200_000 + "x", "(" * 200_000),
    *("\\boxed{" * 30_000, "\\text{" * 30_000, "\\frac{1" * 30_000, "$5" * 100_000, "5*" * 100_000, "**5 " * 50_000),
    *("1 000" + " 000" * 50_000 + " 0", "5 m" + " m" * 100_000, "5 x 10^" * 25_000, "^{5" * 60_000, "two-" * 50_000),
    *("B" + " wait," * 30_000, "B" + ",b" * 100_000, "B\n" * 100_000, "A. B. " * 30_000, "the answer is " * 15_000),
    *("in " + "a " * 100_000, "B" + "-" * 200_000, "not " * 50_000),
]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("function", "ocr", "free_form")])
@pytest.mark.parametrize("given", LONG, ids=[text[:12] for text in LONG])
@pytest.mark.timeout(30)
def test_a_long_answer_takes_time_that_grows_with_its_length(name: str, given: str) -> None:
    """Read in time that grows with their square these would take minutes."""
    reference = {"box": "[0, 0, 4, 4]", "interval": "1-4", "multiple_choice": "B"}.get(name, "4")
    assert 0 <= scored(name, given, reference) <= 1


@pytest.mark.parametrize("brackets", ["()", "{}", "[]"])
@pytest.mark.timeout(30)
def test_brackets_in_brackets_are_read_to_a_depth(brackets: str) -> None:
    """math-verify's time grows by a factor with each."""
    for depth, read in ((6, True), (100, False)):
        given = brackets[0] * depth + "5" + brackets[1] * depth
        assert scored("mathematics", given, "5") <= read
    assert scored("mathematics", "(((5)))", "5") == 1


def test_an_answer_is_needed_whatever_the_verifier() -> None:
    config = reward_config(verifier="regression")
    both = judge(Response("<answer> 80 </answer>", "100", "", "answer_only"), config)
    assert both == {"correctness": pytest.approx(0.8), "format": 1.0}
    for text in ("80", "<answer>80</answer><answer>100</answer>"):
        assert judge(Response(text, "100", "", "answer_only"), config)["correctness"] == 0


def test_names_of_coordinates_are_no_numbers() -> None:
    assert scored("box", '{"x1": 10, "y1": 10, "x2": 80, "y2": 80}', "[10, 10, 80, 80]") == 1
    assert scored("box", "x10 y10 x80 y80", "[10, 10, 80, 80]") == 0
    for written in ("10-10-80-80", "10 - 10 - 80 - 80", "10\N{EN DASH}10, 80\N{EN DASH}80"):
        assert scored("box", written, "[10, 10, 80, 80]") == 1
