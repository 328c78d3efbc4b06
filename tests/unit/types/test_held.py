"""What a role may be asked to do on a shared device, by what it holds there."""

from itertools import pairwise, product

import pytest

from ral_system.controller.residency import HELD, NEXT
from ral_system.errors import GateError
from ral_system.types import Held, Holding
from ral_system.types.held import CHANGES, Role

NOTHING, WEIGHTS, ALL = Held
REACHED: dict[Held, dict[Role, list[Held]]] = {
    NOTHING: {"rollout engine": [NOTHING], "learner rank": [WEIGHTS, NOTHING], "frozen model": [NOTHING]},
    WEIGHTS: {"rollout engine": [NOTHING, WEIGHTS], "learner rank": [WEIGHTS], "frozen model": []},
    ALL: {"rollout engine": [], "learner rank": [], "frozen model": []},
}
"""Changes that bring a role from all of its memory to an amount; a frozen model never holds weights alone."""
POSSIBLE = {
    "rollout engine": {"ALL NOTHING", "NOTHING WEIGHTS", "WEIGHTS ALL", "WEIGHTS NOTHING"},
    "learner rank": {"ALL WEIGHTS", "WEIGHTS NOTHING", "NOTHING ALL", "WEIGHTS ALL"},
    "frozen model": {"ALL NOTHING", "NOTHING ALL"},
}


def holding(role: Role, held: Held) -> Holding:
    found = Holding(role)
    for step in REACHED[held][role]:
        with found.changing(step):
            pass
    return found


@pytest.mark.parametrize("role", POSSIBLE)
@pytest.mark.parametrize(("before", "after"), [*product(Held, Held)])
def test_a_role_makes_only_the_changes_that_it_can_make(role: Role, before: Held, after: Held) -> None:
    if role == "frozen model" and before is WEIGHTS:
        return  # which it never holds
    changed = []
    try:
        with holding(role, before).changing(after):
            changed.append(after)
    except GateError as error:
        assert f"a {role} was asked to hold {after.words} while it holds {before.words} on the sh" in str(error)
    assert bool(changed) == (f"{before.name} {after.name}" in POSSIBLE[role])


def test_the_controller_asks_for_no_other_changes() -> None:
    asked: dict[str, set[tuple[Held, Held]]] = {role: set() for role in CHANGES}
    for before, phases in NEXT.items():
        for after in phases:
            for role, change in zip(CHANGES, zip(HELD[before], HELD[after], strict=True), strict=True):
                asked[role].add(change)
    asked["rollout engine"].add((ALL, NOTHING))  # when it has started
    possible = {role: {*changes} for role, changes in CHANGES.items()}
    assert {role: {c for c in changes if c[0] is not c[1]} for role, changes in asked.items()} == possible


@pytest.mark.parametrize(("less", "least"), [*pairwise(Held)])
def test_work_without_memory_is_refused(less: Held, least: Held) -> None:
    holding("rollout engine", least).require(least, "generate")
    with pytest.raises(GateError) as caught:
        holding("rollout engine", less).require(least, "generate")
    assert str(caught.value) == (
        f"cluster.placement=colocated: a rollout engine was asked to generate while it holds {less.words} on the "
        "shared device; this is a bug in ral_system: please report it"
    )


def test_a_change_that_fails_is_not_made() -> None:
    found = Holding("rollout engine")
    with pytest.raises(ZeroDivisionError), found.changing(NOTHING):
        raise ZeroDivisionError
    found.require(ALL, "generate")
