"""Whatever a model answers, every benchmark gives it a score in [0, 1]."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ral_system.benchmarks.item import Item
from ral_system.registry import BENCHMARKS

OPTIONS = ("a red cube", "")
CHOICE = Item("1", "c", "?", (), ("A",), OPTIONS)
ITEMS = {name: [CHOICE] for name in BENCHMARKS.names} | {
    "mme": [Item("1", "color", "?", (), ("yes",))],
    "chartqa": [Item("1", "c", "?", (), ("14",)), Item("2", "c", "?", (), ("Japan",))],
    "vizwiz": [Item("1", "c", "?", (), ("cat",) * 10)],
    "video_mmmu": [CHOICE, Item("2", "c", "?", (), ("3.14",)), Item("3", "c", "?", (), ("a",))],
    "tempcompass": [
        Item("1", "c", "?", (), ("A. red",), ("red", "blue"), "multi-choice"),
        Item("2", "c", "?", (), ("yes",), (), "yes_no"),
        Item("3", "c", "?", (), ("Caption A: red",), ("Caption A: red", "Caption B: blue"), "caption_matching"),
    ],
}


@pytest.mark.parametrize("name", BENCHMARKS.names)
@given(text=st.text(max_size=60))
@example(text="9" * 5000)
@example(text="1e999 nan inf -" * 50)
@example(text="( ) (A) A. Answer: = \n\n.")
def test_any_answer_scores_between_0_and_1(name: str, text: str) -> None:
    for item in ITEMS[name]:
        assert 0 <= BENCHMARKS.get(name).score(item, text) <= 1
