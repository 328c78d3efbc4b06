"""The overlapped loop against roles that sleep: what overlaps, what never does, and what is lost when something
fails.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.controller.loop import TrainingLoop
from ral_system.controller.pipeline import PipelinedLoop, StalenessBound
from ral_system.controller.residency import residency
from ral_system.errors import GateError, WeightSyncError
from ral_system.observability.progress import PhaseTimer
from ral_system.types import Completion, Prompt, Sampling, TrainPlan, WeightManifest
from tests.unit.controller.fakes import FakeFrozenModel, Fakes, prompt, samples_of

G = 4


class Sleepers(Fakes):
    """Roles that take their time. `log` is what began and ended, in order, in any role."""

    def __init__(self, generate_s: float = 0.0, update_s: float = 0.0) -> None:
        super().__init__()
        self.generate_s, self.update_s = generate_s, update_s
        self.log: list[str] = []
        self.generating = threading.Event()
        self.fail_at: int | None = None
        self.generations = 0
        self.score_s = self.between_s = 0.0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Completion]:
        assert not self.generating.is_set()
        self.generating.set()
        self.generations += 1
        self.log.append(f"generate with {self.loaded_version}")
        time.sleep(self.generate_s)
        if self.generations == self.fail_at:
            raise GateError("the engine broke")
        for completion in list(super().generate(prompts, sampling)):
            time.sleep(self.between_s)
            yield completion
        self.generating.clear()

    def load_weights(self, weights: Any) -> Sequence[WeightManifest]:
        assert not self.generating.is_set(), "weights changed under a generation"
        return super().load_weights(weights)

    def score(self, plan: TrainPlan) -> Sequence[str]:
        time.sleep(self.score_s)
        return super().score(plan)

    def update(self, plan: TrainPlan, *args: Any) -> Callable[[], Mapping[str, float]]:
        self.log.append(f"update on {min(s.weight_version for s in samples_of(plan))}")
        time.sleep(self.update_s)
        return super().update(plan, *args)


@pytest.fixture
def make(make_config: Callable[..., TrainConfig]) -> Callable[..., TrainingLoop]:
    def made(roles: Fakes, staleness: int, *overrides: str) -> TrainingLoop:
        config = make_config(
            "algorithm.prompts_per_step=3",
            f"algorithm.completions_per_prompt={G}",
            "algorithm.updates_per_step=1",
            "algorithm.attention.weight=0",
            *("reward.correctness=1", "reward.format=1"),
            f"algorithm.max_staleness={staleness}",
            *overrides,
        )
        kind, timer = PipelinedLoop if staleness else TrainingLoop, PhaseTimer()
        loop = kind(config, roles, prompt, timer, residency(roles, timer))  # type: ignore[arg-type]
        loop.publish()
        return loop

    return made


def test_the_next_batch_is_made_while_one_trains(make: Callable[..., TrainingLoop]) -> None:
    roles = Sleepers(0.05, 0.05)
    loop = make(roles, 1)
    results = [loop.step(until_pause=4 - i) for i in range(4)]
    loop.close()
    assert [r.metrics["pipeline/staleness"] for r in results] == [0, 1, 1, 1]
    assert [r.metrics["learner/version"] for r in results] == [1, 2, 3, 4]
    made = [{r.completion.weight_version for r in result.rollouts} for result in results]
    assert made == [{0}, {0}, {1}, {2}]
    firsts = [result.metrics["prompts/first"] for result in results]
    assert firsts == [0, 3, 6, 9] and results[-1].metrics["prompts/end"] == 12
    # two batches are made with the first weights, one with each of the next; nothing is begun before the pause
    assert roles.log.count("generate with 0") == 2
    assert roles.log.count("generate with 1") == roles.log.count("generate with 2") == 1
    assert "generate with 3" not in roles.log
    assert roles.loaded_version == 4  # at the pause the engines have the newest weights


@pytest.mark.parametrize(
    ("staleness", "expected"), [(2, [0, 0, 0, 1, 2, 3, 4]), (3, [0, 0, 0, 0, 1, 2, 3]), (9, [0] * 7)]
)
def test_a_batch_is_made_with_the_weights_of_so_many_steps_before(
    make: Callable[..., TrainingLoop], staleness: int, expected: list[int]
) -> None:
    for roles in (Sleepers(0.02, 0.0), Sleepers(0.0, 0.02)):  # either side has to wait
        loop = make(roles, staleness)
        results = [loop.step(until_pause=7 - i) for i in range(7)]
        loop.close()
        assert [r.metrics["pipeline/staleness"] for r in results] == [i - made for i, made in enumerate(expected)]
        assert [{r.completion.weight_version for r in result.rollouts} for result in results] == [
            {made} for made in expected
        ]
        assert [r.metrics["prompts/first"] for r in results] == [3 * i for i in range(7)]
        loads = [call[1] for call in roles.calls if call[0] == "load"]
        assert loads == [f"weights {version}" for version in sorted({*expected, 7})]  # none that makes no batch
        # one tensor, held by two engines; the first load was before the first step
        assert sum(r.metrics["gate/tensors_verified"] for r in results) == 2 * (len(loads) - 1)


def test_no_batch_is_made_with_weights_that_did_not_arrive_whole(make: Callable[..., TrainingLoop]) -> None:
    roles = Sleepers()
    loop = make(roles, 2)
    roles.held_checksum = "bb"
    with pytest.raises(WeightSyncError, match="weights 1: the engine holds other weights"):
        for i in range(7):
            loop.step(until_pause=7 - i)
    loop.close()
    assert {c.weight_version for plan in roles.trained for c in samples_of(plan)} == {0}


class Interrupted(Sleepers):
    """An engine that takes new weights in the middle of a batch: each completion has those it was finished with."""

    def __init__(self) -> None:
        super().__init__()
        self.between_s = 0.01

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Completion]:
        begun_with = self.loaded_version
        for completion in super().generate(prompts, sampling):
            now = self.loaded_version
            if now == begun_with:
                yield completion
            elif len(completion.token_ids) % 2:
                yield replace(completion, weight_version=begun_with, switches=((1, now),))
            else:
                yield replace(completion, weight_version=now, restarts=1)

    def load_weights(self, weights: Any) -> Sequence[WeightManifest]:
        return Fakes.load_weights(self, weights)


def test_new_weights_go_to_the_engines_at_once_when_they_are_taken_under_way(make: Callable[..., TrainingLoop]) -> None:
    roles = Interrupted()
    loop = make(roles, 2, "rollout.on_new_weights=continue")
    results = [loop.step(until_pause=8 - i) for i in range(8)]
    loop.close()
    loads = [call[1] for call in roles.calls if call[0] == "load"]
    assert loads == [f"weights {version}" for version in range(9)]
    assert all(0 <= r.metrics["pipeline/staleness"] <= 2 for r in results)
    for version, result in enumerate(results):
        made = [r.sample().weight_versions for r in result.rollouts]
        assert min(min(versions) for versions in made) == version - result.metrics["pipeline/staleness"]
        assert max(max(versions) for versions in made) <= version
    assert sum(r.metrics["pipeline/switched"] for r in results) > 0
    assert sum(r.metrics["pipeline/restarts"] for r in results) > 0


def test_a_batch_of_newer_weights_is_an_error_unless_asked_for(make: Callable[..., TrainingLoop]) -> None:
    loop = make(Interrupted(), 2)
    loop._roles.generator.loaded_version = 5
    with pytest.raises(GateError, match="made with weights 5, but the engines were given 0"):
        loop.step(until_pause=3)
    loop.close()


class Meeting(Sleepers):
    """Training on a batch ends only when the generation of the next has begun, and the other way round."""

    def __init__(self, meetings: int) -> None:
        super().__init__()
        self.meetings, self.met = meetings, 0
        self.both = threading.Barrier(2, timeout=60)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Completion]:
        if self.loaded_version or self.generations:  # nothing trains while the first batch is made
            self.both.wait()
        return super().generate(prompts, sampling)

    def update(self, plan: TrainPlan, *args: Any) -> Callable[[], Mapping[str, float]]:
        if self.met < self.meetings:  # nothing is generated while the last batch trains
            self.both.wait()
            self.met += 1
        return super().update(plan, *args)


def test_each_batch_is_generated_while_the_one_before_trains(make: Callable[..., TrainingLoop]) -> None:
    roles = Meeting(meetings=29)
    loop = make(roles, 1, "algorithm.steps=40", "checkpoint.every=40")
    for i in range(30):
        loop.step(until_pause=30 - i)
    loop.close()
    assert roles.met == 29 and roles.generations == 30


def test_verdicts_stay_with_their_batch(make: Callable[..., TrainingLoop]) -> None:
    """The next batch is being submitted for judging while this one is scored and judged."""
    roles = Sleepers()
    roles.between_s, roles.score_s = 0.005, 0.03
    loop = make(roles, 1)
    results = [loop.step(until_pause=4 - i) for i in range(4)]
    loop.close()
    for result in results:
        assert [r.reward.completion_id for r in result.rollouts] == [r.completion.id for r in result.rollouts]
        assert result.metrics["ahead/rollout_s"] > 0.05 and "time/rollout_s" not in result.metrics


def test_after_a_pause_a_batch_is_fresh(make: Callable[..., TrainingLoop]) -> None:
    loop = make(Sleepers(), 1)
    stale = [loop.step(until_pause=2 - i % 2).metrics["pipeline/staleness"] for i in range(6)]
    loop.close()
    assert stale == [0, 1, 0, 1, 0, 1]


def test_with_pauses_everywhere_it_is_the_synchronous_loop(make: Callable[..., TrainingLoop]) -> None:
    found = []
    for staleness in (0, 1):
        roles = Sleepers()
        loop = make(roles, staleness)
        results = [loop.step(until_pause=1) for _ in range(3)]
        loop.close()
        rollouts = [[(r.completion, r.reward, r.advantage) for r in result.rollouts] for result in results]
        found.append((rollouts, [samples_of(plan) for plan in roles.trained], roles.loaded_version))
    assert found[0] == found[1]


def test_groups_that_are_all_alike_are_drawn_again_ahead_too(make: Callable[..., TrainingLoop]) -> None:
    roles = Sleepers()
    roles.alike = {"train/1", "train/4", "train/5"}  # 0, 2 and then 3; 6 and then, 4 and 5 being alike, 7 and 8
    loop = make(roles, 1, "algorithm.sampling_rounds=3")
    results = [loop.step(until_pause=2 - i) for i in range(2)]
    loop.close()
    trained = [list(dict.fromkeys(r.prompt.id for r in result.rollouts)) for result in results]
    assert trained == [[f"train/{i}" for i in batch] for batch in ((0, 2, 3), (6, 7, 8))]
    assert [(r.metrics["prompts/first"], r.metrics["prompts/end"]) for r in results] == [(0, 4), (4, 9)]
    assert [r.metrics["pipeline/staleness"] for r in results] == [0, 1]


def test_frozen_models_get_a_batch_when_it_is_its_turn(make: Callable[..., TrainingLoop]) -> None:
    roles = Sleepers()
    roles.teachers = [teacher := FakeFrozenModel("teacher", roles)]
    assert roles.reference is not None
    loop = make(roles, 1)
    loop.step(until_pause=2)
    assert [ids[0] for ids in teacher.submitted] == [f"train/{i}#0" for i in range(3)]
    loop.step()
    loop.close()
    assert [ids[0] for ids in teacher.submitted] == [f"train/{i}#0" for i in range(6)]
    assert roles.reference.submitted == teacher.submitted


def test_what_fails_while_generating_ahead_is_raised_where_the_batch_is_taken(
    make: Callable[..., TrainingLoop],
) -> None:
    roles = Sleepers()
    roles.fail_at = 2
    loop = make(roles, 1)
    loop.step(until_pause=2)
    with pytest.raises(GateError, match="the engine broke"):
        loop.step()
    loop.close()


def test_close_does_not_wait(make: Callable[..., TrainingLoop]) -> None:
    roles = Meeting(meetings=0)
    loop = make(roles, 1)
    loop.step(until_pause=2)  # the next batch is under way, and waits for a training that never comes
    loop.close()
    assert not roles.both.broken
    roles.both.abort()


def test_staleness_is_bounded_where_data_is_consumed() -> None:
    bound = StalenessBound(1)
    assert [bound.check(4, 4), bound.check(4, 5)] == [0, 1]
    for made, now in ((4, 6), (5, 4)):
        with pytest.raises(
            GateError, match=rf"made with weights {made} would be trained on at {now}: .*max_staleness=1"
        ):
            bound.check(made, now)
