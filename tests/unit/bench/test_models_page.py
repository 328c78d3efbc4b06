"""docs/models.md reports for each model what the tests run with it."""

from collections.abc import Callable

import pytest

from bench.models import TARGET, models_of, page, served
from ral_system.families.known import known_types
from tests.unit.training import test_families_in_the_learner as learner


def test_the_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == page(), "run python -m bench.models"


def test_every_row_is_of_a_type_that_is_served() -> None:
    rows = [of.model_type for of in served()]
    assert len(set(rows)) == len(rows) and set(rows) <= set(known_types())


def test_what_no_test_goes_through_is_said_to_be_untested(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = pytest.mark.parametrize("case", ["glm4v"], indirect=True)
    test = learner.test_a_frozen_encoder_sees_each_medium_once_and_is_not_trained
    monkeypatch.setattr(test, "pytestmark", [fewer.mark])
    table = page().partition("## Options tested with each model")[2]
    cells = {row.split(" | ")[0]: row.split(" | ")[4] for row in table.splitlines() if row.startswith("| ")}
    assert cells.pop("| models") == "frozen encoder" and cells.pop("| GLM-4.1V") == "yes"
    assert len(cells) == len(served()) - 1 and set(cells.values()) == {"not tested"}


def test_a_model_that_may_be_skipped_or_may_fail_is_not_gone_through() -> None:
    cases = ["a", case("b", "xfail"), case("c", "long"), case("d", "long", "skip")]
    names = pytest.mark.parametrize("case", cases)

    def marked(*marks: pytest.MarkDecorator) -> Callable[..., object]:
        def test(case: str) -> None: ...

        for mark in marks:
            mark(test)
        return test

    assert models_of(marked(names), "case") == {"a", "c"}
    assert models_of(marked(names), "family") == models_of(marked(), "case") == set()
    for mark in (pytest.mark.skip, pytest.mark.skipif(True, reason=""), pytest.mark.xfail):
        assert models_of(marked(names, mark), "case") == set()


def case(name: str, *marks: str) -> object:
    return pytest.param(name, marks=[getattr(pytest.mark, mark) for mark in marks])
