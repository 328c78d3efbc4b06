"""Answers as models and cheats write them: every right one is rewarded, no wrong one is."""

import pytest

from ral_system.registry import VERIFIERS
from tests.unit.rewards.corpus import mathematics, multiple_choice, numeric, others
from tests.unit.rewards.settings import reward_config

BY_VERIFIER = {"mathematics": mathematics, "numeric": numeric, "multiple_choice": multiple_choice}
CASES = [
    *((name, *case[:2], 1, case[2]) for name, table in BY_VERIFIER.items() for case in table.RIGHT),
    *((name, *case[:2], 0, case[2]) for name, table in BY_VERIFIER.items() for case in (*table.WRONG, *table.UNREAD)),
    *others.CASES,
]


@pytest.mark.parametrize(
    ("name", "reference", "given", "score"),
    [case[:4] for case in CASES],
    ids=[f"{name}: {given[:30]!r} for {reference!r}: {why}" for name, reference, given, _, why in CASES],
)
def test_what_an_answer_is_worth(name: str, reference: str, given: str, score: float) -> None:
    config = reward_config(verifier=name)
    assert VERIFIERS.get(config.verifier)(given, reference, config) == pytest.approx(score)
