import pytest

from ral_system.rewards.format import extract_answer, format_score
from ral_system.rewards.judge import judge
from ral_system.rewards.response import Response
from tests.unit.rewards.settings import reward_config

GOOD_THINK = "<think> a1 red star </think> <answer> red </answer>"
GOOD_ANSWER = "<answer> red </answer>"

# text, think_answer score, answer_only score, extracted answer
EDGES = [
    (GOOD_THINK, 1, 0, "red"),
    (GOOD_ANSWER, 0, 1, "red"),
    ("<think>x</think><answer>y</answer>", 1, 0, "y"),
    ("\n <think>x</think>\n\n<answer>y</answer>\n", 1, 0, "y"),
    ("<think>two\nlines</think><answer>y\nz</answer>", 1, 0, "y\nz"),
    ("  <answer>\nred\n</answer>\t", 0, 1, "red"),
    ("", 0, 0, None),
    ("red", 0, 0, None),
    ("well <think>x</think><answer>y</answer>", 0, 0, "y"),
    ("<think>x</think><answer>y</answer> done", 0, 0, "y"),
    ("<think>x</think> so <answer>y</answer>", 0, 0, "y"),
    ("<think>x</think><answer>y</answer><answer>y</answer>", 0, 0, None),
    ("<answer>y</answer><answer>z</answer>", 0, 0, None),
    ("<think>x</think><think>x</think><answer>y</answer>", 0, 0, "y"),
    ("<think>x<think></think><answer>y</answer>", 0, 0, "y"),
    ("<answer>y</answer><think>x</think>", 0, 0, "y"),
    ("<think><answer>y</answer></think>", 0, 0, "y"),
    ("<think>x<answer></think>y</answer>", 0, 0, "</think>y"),
    ("<think></think><answer>y</answer>", 0, 0, "y"),
    ("<think> \n </think><answer>y</answer>", 0, 0, "y"),
    ("<think>x</think><answer></answer>", 0, 0, ""),
    ("<think>x</think><answer>  </answer>", 0, 0, ""),
    ("<answer></answer>", 0, 0, ""),
    ("<think>x</think><answer>y", 0, 0, None),
    ("<think>x<answer>y</answer>", 0, 0, "y"),
    ("x</think><answer>y</answer>", 0, 0, "y"),
    ("<answer>y</answer> red", 0, 0, "y"),
    ("</answer>y<answer>", 0, 0, None),
    ("<Think>x</Think><Answer>y</Answer>", 0, 0, None),
    ("< answer >y</ answer >", 0, 0, None),
    ("<answer><think>y</answer>", 0, 0, "<think>y"),
    ("<answer>a < b</answer>", 0, 1, "a < b"),
    ("<think>" * 2000 + "<answer>" * 2000, 0, 0, None),
]


@pytest.mark.parametrize(("text", "think", "alone", "answer"), EDGES, ids=range(len(EDGES)))
def test_template_edges(text: str, think: int, alone: int, answer: str | None) -> None:
    assert format_score(text, "think_answer") == think
    assert format_score(text, "answer_only") == alone
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "correctness", "format"),
    [(GOOD_THINK, 1, 1), (GOOD_ANSWER, 1, 0), (GOOD_THINK.replace("> red <", "> blue <"), 0, 1), ("nothing", 0, 0)],
)
def test_answer_and_template_are_judged_apart(text: str, correctness: int, format: int) -> None:
    found = judge(Response(text, "red", "", "think_answer"), reward_config())
    assert found == {"correctness": correctness, "format": format}
