"""Rows through the roles: what is accepted, what is rejected and why, and that nothing is lost however it ends."""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ral_system.config.commands import SynthesizeConfig
from ral_system.config.synthesis import SynthesisConfig
from ral_system.errors import DataError, SetupError
from ral_system.synthesis.pipeline import OUTAGE, Synthesis, Tally
from ral_system.synthesis.rows import ROLES, Generator, MalformedError, Role, Row, UnansweredError
from ral_system.synthesis.template import TemplateGenerator
from ral_system.tasks.visual_search import VisualSearch

SOURCE = VisualSearch(seed=0, grid=3, objects=9)
ROWS = [Row(SOURCE.record("train", i)) for i in range(30)]


class Model:
    """A role played by a function of the row's number and the attempt; what it was asked is remembered."""

    deterministic = False

    def __init__(
        self, role: Role, answer: Callable[[int, int], str | Exception | None] = lambda row, attempt: None
    ) -> None:
        self.template, self.answer = TemplateGenerator(role), answer
        self.asked: list[int] = []
        self.in_work = self.most_in_work = 0
        self.closed = False
        self.checked = 0

    async def check(self) -> None:
        assert not self.asked
        self.checked += 1

    async def generate(self, row: Row, texts: Mapping[Role, str]) -> str:
        index = row.record.index
        self.asked.append(index)
        self.in_work += 1
        self.most_in_work = max(self.most_in_work, self.in_work)
        await asyncio.sleep(0.001 * (index % 3))
        self.in_work -= 1
        found = self.answer(index, self.asked.count(index))
        if isinstance(found, Exception):
            raise found
        return await self.template.generate(row, texts) if found is None else found

    async def close(self) -> None:
        self.closed = True


class Case:
    """One folder and its roles."""

    def __init__(self, folder: Path, make_config: Callable[..., SynthesizeConfig], *overrides: str) -> None:
        self.folder = folder
        self.config: SynthesisConfig = make_config(
            *(f"synthesis.{o}" for o in overrides), kind=SynthesizeConfig
        ).synthesis
        self.roles: dict[Role, Model] = {role: Model(role) for role in ROLES}

    def run(self, rows: list[Row] = ROWS) -> Tally:
        generators: dict[Role, Generator] = dict(self.roles)
        seen: list[int] = []
        found = Synthesis(self.folder, self.config, generators)
        tally = asyncio.run(found.run(rows, lambda tally: seen.append(tally.done)))
        assert seen == sorted(seen)
        return tally

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def case(tmp_path: Path, make_config: Callable[..., SynthesizeConfig]) -> Callable[..., Case]:
    return lambda *overrides: Case(tmp_path / "synthesis", make_config, *overrides)


def test_every_row_gets_its_demonstration(case: Callable[..., Case]) -> None:
    found = case("concurrency=4")
    tally = found.run()
    assert (tally.accepted, tally.done, tally.unanswered) == (30, 30, 0)
    demonstrations = {line["index"]: line for line in found.lines("demonstrations")}
    assert demonstrations.keys() == set(range(30))
    for row in ROWS:
        line = demonstrations[row.record.index]
        assert (line["id"], line["question"], line["answer"]) == (row.id, row.record.question, row.record.answer)
        assert "look back at" in line["response"]
    assert len(found.lines("outputs")) == 90
    assert all(role.asked == list(dict.fromkeys(role.asked)) and role.closed for role in found.roles.values())
    assert all(role.checked == 1 for role in found.roles.values())


@pytest.mark.parametrize("concurrency", [1, 5])
def test_as_many_rows_are_in_work_as_may_be(case: Callable[..., Case], concurrency: int) -> None:
    found = case(f"concurrency={concurrency}")
    found.run()
    assert 1 <= max(role.most_in_work for role in found.roles.values()) <= concurrency
    assert concurrency == 1 or found.roles["describer"].most_in_work > 1


def test_a_malformed_completion_is_tried_again_as_often_as_allowed(case: Callable[..., Case]) -> None:
    found = case("attempts=3")
    found.roles["reasoner"].answer = lambda row, attempt: MalformedError("cut") if attempt < 1 + row % 4 else None
    tally = found.run()
    # rows 0, 1, 2 of four come through at the first, second and third attempt; the others would at the fourth
    failed = [i for i in range(30) if i % 4 == 3]
    assert tally.rejected == {("reasoner", "cut"): len(failed)}
    assert sorted(line["id"] for line in found.lines("rejected")) == sorted(f"train/{i}" for i in failed)
    assert all(found.roles["reasoner"].asked.count(i) == min(3, 1 + i % 4) for i in range(30))
    assert all(found.roles["anchorer"].asked.count(i) == (i not in failed) for i in range(30))
    assert tally.accepted + len(failed) == tally.done == 30


def test_what_is_wrong_is_kept_with_role_reason_and_text(case: Callable[..., Case]) -> None:
    found = case("attempts=2")
    wrong: dict[Role, tuple[int, str, str]] = {
        "describer": (3, " ", "empty"),
        "reasoner": (4, "<think> hm </think> <answer> zebra </answer>", "another answer than the right one"),
        "anchorer": (5, "<think> hm </think>", "not <think> … </think> <answer> … </answer>"),
    }
    for role, (at, text, _) in wrong.items():
        found.roles[role].answer = lambda row, attempt, at=at, text=text: text if row == at else None
    found.run()
    rejected = {line["role"]: line for line in found.lines("rejected")}
    for role, (at, text, reason) in wrong.items():
        assert rejected[role]["id"] == f"train/{at}"
        assert rejected[role]["output"] == text
        assert rejected[role]["reason"].startswith(reason)
        assert found.roles[role].asked.count(at) == 2


def test_reason_and_text_are_of_the_same_attempt(case: Callable[..., Case]) -> None:
    found = case("attempts=2")
    found.roles["reasoner"].answer = lambda row, attempt: (
        None if row != 4 else "nonsense" if attempt == 1 else MalformedError("cut", "<think> on and")
    )
    found.run()
    (line,) = found.lines("rejected")
    assert (line["reason"], line["output"]) == ("cut", "<think> on and")


def test_reasons_are_few_whatever_was_said(case: Callable[..., Case]) -> None:
    found = case("attempts=1")
    found.roles["reasoner"].answer = lambda row, attempt: f"<think> hm </think> <answer> zebra {row} </answer>"
    tally = found.run(ROWS[:10])
    assert tally.rejected == {("reasoner", "another answer than the right one"): 10}


def test_what_is_done_needs_no_server(case: Callable[..., Case]) -> None:
    case().run(ROWS[:5])
    again = case()
    assert again.run(ROWS[:5]).accepted == 5
    assert all(role.checked == 0 and role.closed for role in again.roles.values())


def test_lines_that_somebody_damaged_are_left_out(case: Callable[..., Case]) -> None:
    first = case()
    first.run(ROWS[:5])
    (first.folder / "outputs.jsonl").write_text('{"id": "train/9"}\n[1]\n')
    (first.folder / "rejected.jsonl").write_text('{"id": "train/9"}\n')
    assert case().run().accepted == 30


def test_a_template_is_not_asked_twice(case: Callable[..., Case]) -> None:
    found = case("attempts=3")
    found.roles["reasoner"].deterministic = True
    found.roles["reasoner"].answer = lambda row, attempt: "" if row == 1 else None
    found.run()
    assert found.roles["reasoner"].asked.count(1) == 1


def test_what_is_done_is_left_alone_by_the_next_run(case: Callable[..., Case]) -> None:
    first = case()
    first.roles["reasoner"].answer = lambda row, attempt: "" if row == 2 else None
    first.run(ROWS[:20])
    again = case()
    tally = again.run(ROWS)
    assert sorted(set(again.roles["describer"].asked)) == list(range(20, 30))
    assert (tally.accepted, tally.rejected.total(), tally.done) == (29, 1, 30)
    assert len(again.lines("demonstrations")) == 29


@pytest.mark.parametrize("cut", [0, 7])
def test_an_interrupted_row_goes_on_with_the_role_it_was_at(case: Callable[..., Case], cut: int) -> None:
    first = case("concurrency=3")
    first.roles["anchorer"].answer = lambda row, attempt: RuntimeError("killed") if row == 6 else None
    with pytest.raises(RuntimeError, match="killed"):
        first.run()
    outputs = first.folder / "outputs.jsonl"
    before = {(line["id"], line["role"]) for line in first.lines("outputs")}
    if cut:  # a kill in the middle of a line
        torn = first.lines("outputs")[-1]
        before.remove((torn["id"], torn["role"]))
        outputs.write_bytes(outputs.read_bytes()[:-cut])
    assert 0 < len(first.lines("demonstrations")) < 29
    again = case("concurrency=3")
    assert again.run().accepted == 30
    for role in ROLES:
        assert not [i for i in again.roles[role].asked if (f"train/{i}", role) in before]
    assert sorted(line["index"] for line in again.lines("demonstrations")) == list(range(30))


def test_a_row_without_an_answer_is_tried_again_by_the_next_run(case: Callable[..., Case]) -> None:
    first = case()
    first.roles["reasoner"].answer = lambda row, attempt: UnansweredError("too slow") if row % 10 == 1 else None
    tally = first.run()
    assert (tally.accepted, tally.unanswered, tally.rejected.total()) == (27, 3, 0)
    again = case()
    tally = again.run()
    assert (tally.accepted, tally.unanswered) == (30, 0)
    assert sorted(again.roles["reasoner"].asked) == [1, 11, 21]
    assert again.roles["describer"].asked == []


def test_scattered_silence_does_not_end_it(case: Callable[..., Case]) -> None:
    found = case("concurrency=1")
    found.roles["describer"].answer = lambda row, attempt: UnansweredError("too slow") if row % 3 else None
    tally = found.run()
    assert (tally.accepted, tally.unanswered) == (10, 20)
    assert tally.unanswered > 2 * OUTAGE


def test_a_server_that_falls_silent_ends_it(case: Callable[..., Case]) -> None:
    found = case("concurrency=2")
    found.roles["describer"].answer = lambda row, attempt: UnansweredError("too slow") if row >= 10 else None
    with pytest.raises(
        SetupError, match=rf"{OUTAGE} rows in a row got no answer \(too slow\).*nothing that came back is"
    ):
        found.run()
    assert len(found.lines("demonstrations")) == 10
    assert all(role.closed for role in found.roles.values())


def test_when_too_much_is_rejected_it_ends_and_says_what(case: Callable[..., Case]) -> None:
    found = case("max_rejected=0.5", "concurrency=1", "attempts=1")
    found.roles["reasoner"].answer = lambda row, attempt: "" if row >= 5 else None
    with pytest.raises(
        DataError,
        match=r"15 of 20 rows were rejected, more than synthesis.max_rejected=0.5; most often \(15\) the reas",
    ):
        found.run()
    assert (len(found.lines("demonstrations")), len(found.lines("rejected"))) == (5, 15)


def test_an_error_that_is_no_row_s_fault_ends_it_at_once(case: Callable[..., Case]) -> None:
    found = case("concurrency=4")
    found.roles["reasoner"].answer = lambda row, attempt: SetupError("no such server") if row == 3 else None
    with pytest.raises(SetupError, match="no such server"):
        found.run()
    assert len(found.roles["describer"].asked) < 12
