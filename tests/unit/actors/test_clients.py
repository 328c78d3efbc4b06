"""What the clients ask of actors, whose handles only count here: how often, and how groups are shared out."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ral_system.actors import clients
from ral_system.actors.clients import (
    RayFrozenModel,
    RayGenerator,
    RayLearner,
    RayRewarder,
    RayWithoutAdapters,
    RemoteScores,
)
from ral_system.actors.group import Call, Member
from ral_system.config.commands import TrainConfig
from ral_system.observability.work import Work
from ral_system.rollout.seeds import completion_seed
from ral_system.training.plan import plan_updates
from ral_system.types import Completion, FinishReason, Piece, Prompt, Sample, Sampling
from tests.unit.controller.fakes import Fakes, G, start


class Handle:
    """An actor's handle that remembers its calls, as (method, first argument)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*args: Any) -> Any:
            self.calls.append((method, args[0] if args else None))
            return (object(), object()) if method == "take" else object()

        return SimpleNamespace(remote=remote)


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch, tmp_path) -> list[Member]:
    monkeypatch.setattr(clients, "ray", SimpleNamespace(wait=lambda refs, **_: ([], refs)))
    monkeypatch.setattr(clients, "wait_all", lambda calls, *_: [{} for _ in calls])
    return [Member(Handle(), "reference", rank, tmp_path, "node") for rank in range(2)]


def group(name: str, prompt_tokens: int) -> list[Sample]:
    prompt = Prompt(name, "", "", "", (), (1,) * prompt_tokens)
    return [Sample(f"{name}#{i}", prompt, (7,)) for i in range(2)]


def test_a_group_goes_to_the_actor_with_the_fewest_tokens_of_the_batch(members: list[Member]) -> None:
    groups = [group(name, tokens) for name, tokens in (("a", 10), ("b", 3), ("c", 4), ("d", 3), ("e", 1))]
    samples = [sample for members_of in groups for sample in members_of]
    plan = plan_updates(samples, updates=1, shards=2, max_tokens=100)
    reference = RayFrozenModel(members, 8, 1.0)  # a group is a bundle
    for _ in range(2):  # the next batch is shared out as the first
        for of_group in groups:
            reference.submit(of_group)
        ranks = reference.collect(plan)
    # prices 12, 5, 6, 5, 3: the second actor has 5 and then 11 when d comes, and 16 when e comes
    scored = [[samples[0].id[0] for method, samples in m.handle.calls if method == "score"] for m in members]
    assert scored == [["a", "e"] * 2, ["b", "c", "d"] * 2]
    taken = [[ids for method, ids in m.handle.calls if method == "take"][-2:] for m in members]
    for rank, parts in enumerate(ranks):
        by_member = {part.done.member.rank: taken[part.done.member.rank][rank] for part in parts}
        assert sorted(id for ids in by_member.values() for id in ids) == sorted(plan.rank_ids(rank))
        assert all({id[0] for id in ids} <= set(scored[index]) for index, ids in by_member.items())


def test_small_groups_are_scored_in_bundles(members: list[Member]) -> None:
    groups = [group(name, tokens) for name, tokens in (("a", 6), ("b", 3), ("c", 10), ("d", 2), ("e", 1))]
    plan = plan_updates([s for g in groups for s in g], updates=1, shards=1, max_tokens=100)
    reference = RayFrozenModel(members[:1], 8 * 12, 1.0)
    for _ in range(2):
        for of_group in groups:  # prices 8, 5, 12, 4, 3
            reference.submit(of_group)
        reference.collect(plan)
    scored = ["".join(s.id[0] for s in samples) for method, samples in members[0].handle.calls if method == "score"]
    assert scored == ["aabb", "cc", "ddee"] * 2


def test_an_update_can_be_queued_behind_another(members: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_updates(group("a", 3), updates=1, shards=2, max_tokens=100)
    monkeypatch.setattr(clients.ray, "put", lambda update: update, raising=False)
    waited: list[list[Call]] = []

    def answered(calls: list[Call], *_: Any) -> list[Any]:
        waited.append(calls)
        work = Work(seconds=2.0, tokens=6, unshared_tokens=6)
        return [({"supervised/loss": 0.5}, work) for _ in calls]

    monkeypatch.setattr(clients, "wait_all", answered)
    learner = RayLearner(members, 2, 1.0, send_timeout_s=1.0, keeps_offers=True, attention_kernel="sdpa")
    answers = [learner.fit(plan, 0) for _ in range(2)]
    assert not waited and [m.handle.calls for m in members] == [[("fit", plan.updates[0])] * 2] * 2
    found = [answer() for answer in answers]
    assert found[0]["supervised/loss"] == 0.5 and found[0]["learner/tokens_per_s"] == 3.0
    assert not {call.ref for call in waited[0]} & {call.ref for call in waited[1]}

    monkeypatch.setattr(clients, "wait_all", lambda calls, *_: waited.append(calls) or [{"policy/loss": 0.5}])
    scores = [RemoteScores(Call(member, object()), object()) for member in members]
    waited.clear()
    updates = [learner.update(plan, 0, scores, None) for _ in range(2)]
    assert not any(waited) and [[name for name, *_ in m.handle.calls[2:]] for m in members] == [["update"] * 2] * 2
    assert all(metrics() == {"policy/loss": 0.5} for metrics in updates)


class RankHandle:
    """A learner rank's handle: what each method was called with, and the scores that it answered with."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[Any, ...]] = {}
        self.scores: list[object] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*args: Any) -> Any:
            self.calls[method] = args
            if not method.startswith("score"):
                return object()
            self.scores.append(object())
            return object(), self.scores[-1]

        return SimpleNamespace(remote=remote)


def test_ranks_that_have_a_shard_together_are_given_the_scores_of_one(
    members: list[Member], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    plan = plan_updates([s for name in "abcd" for s in group(name, 3)], updates=1, shards=2, max_tokens=100)
    monkeypatch.setattr(clients.ray, "put", lambda value: value, raising=False)
    handles = [RankHandle() for _ in range(4)]
    ranks = [Member(handle, "learner", rank, tmp_path, "node") for rank, handle in enumerate(handles)]
    learner = RayLearner(ranks, 2, 1.0, send_timeout_s=1.0, keeps_offers=True, attention_kernel="sdpa")
    reference = RayWithoutAdapters(ranks, 2, 1.0)
    behaviour, frozen = learner.score(plan), reference.collect(plan)
    assert learner.shards == len(behaviour) == len(frozen) == 2
    learner.kl(behaviour, frozen)
    learner.update(plan, 0, behaviour, frozen)
    assert all(len(handle.scores) == 2 for handle in handles)  # they compute together
    assert ["kl" in handle.calls for handle in handles] == [True, False, True, False]
    given = [handle.calls["update"][1:] for handle in handles]
    (own, as_reference), (other, other_as_reference) = handles[0].scores, handles[2].scores
    assert given == [(own, 1, as_reference)] * 2 + [(other, 1, other_as_reference)] * 2


def test_a_step_asks_the_verifiers_once_for_each_group(
    make_config: Callable[..., TrainConfig], members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    roles, handle = Fakes(), members[0].handle
    config = make_config("algorithm.prompts_per_step=3", f"algorithm.completions_per_prompt={G}")
    loop = start(config, roles)

    def answered(calls: list[Call], *_: Any) -> list[Any]:
        submitted: list[Completion] = [c for method, group in handle.calls if method == "submit" for c in group]
        return [{c.id: roles.judge(c) for c in submitted}]

    monkeypatch.setattr(clients, "wait_all", answered)
    roles.rewarder = RayRewarder(members[:1], 1.0)  # type: ignore[assignment]
    assert len(loop.step().rollouts) == 3 * G
    assert Counter(method for method, _ in handle.calls) == {"submit": 3, "collect": 1}


class FakeEngine:
    """An engine's handle; a completion depends on its prompt, index and seed alone."""

    def __init__(self) -> None:
        self.generate, self.pieces = SimpleNamespace(remote=self.complete), list[Piece]()

    def complete(self, pieces: list[Piece], sampling: Sampling) -> list[Completion]:
        self.pieces += pieces
        return [
            Completion(p.prompt.id, i, (completion_seed(sampling.seed, p.prompt.id, i),), (0.0,), "", reason, 0)
            for p in pieces
            for i in range(p.first, p.first + p.completions)
            for reason in (FinishReason.LENGTH,)
        ]


@pytest.mark.parametrize("engines", [1, 2, 3, 7])
def test_completions_do_not_depend_on_the_number_of_engines(
    engines: int, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(clients, "stream", lambda calls, *_: (call.ref for call in calls))
    handles = [FakeEngine() for _ in range(engines)]
    generator = RayGenerator(
        [Member(handle, "rollout", i, tmp_path, "node") for i, handle in enumerate(handles)], 1.0, 1.0
    )
    prompts = [Prompt(f"p{i}", "", "", "", (), (1,) * (i + 1)) for i in range(2)]
    sampling = Sampling(completions=4, temperature=1.0, max_new_tokens=9, seed=3)
    found = {c.id: c.token_ids for c in generator.generate(prompts, sampling)}
    assert found == {f"{p.id}#{i}": (completion_seed(3, p.id, i),) for p in prompts for i in range(4)}
    assert all(handle.pieces for handle in handles)
