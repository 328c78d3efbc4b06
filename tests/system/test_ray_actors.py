"""The roles of a stage as real Ray actors: vLLM, two DeepSpeed ranks, two of the reference and the verifiers."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from ral_system.actors.clients import RayFrozenModel, RayGenerator, RayLearner
from ral_system.actors.cluster import nodes_may_join, start_or_join, stop
from ral_system.actors.group import Call, Member, stream, wait_all
from ral_system.actors.placement import Bundle, reserve
from ral_system.actors.roles import RayRoles
from ral_system.batches.micro_batches import groups_of
from ral_system.errors import ActorError, CollectiveError, DataError, GateError, SetupError
from ral_system.media.store import MediaStore
from ral_system.training.plan import plan_updates
from ral_system.types import Prompt, Rollout, Sample, Sampling
from ral_system.weights.publish import Publisher
from tests.system.ray_setting import folder_of_models, kill_soon, prompts_of, started_actor, started_roles
from tests.system.troubled_actor import Unconnected

pytestmark = pytest.mark.system

SAMPLING = Sampling(completions=4, temperature=1.0, max_new_tokens=12, seed=3)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    start_or_join(None)
    yield
    stop()


@pytest.fixture(scope="module")
def start(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Member]:
    """Start one actor that can fail; `rank` names it."""

    return lambda rank: started_actor(rank, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def troubled(start: Callable[[int], Member]) -> Iterator[list[Member]]:
    members = [start(0), start(1)]
    yield members
    for member in members:
        ray.kill(member.handle)


def test_a_cluster_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(SetupError, match=r"no Ray cluster answers at 127.0.0.1:1 ") as caught:
        start_or_join("127.0.0.1:1")
    assert "\n" not in str(caught.value)


def test_a_cluster_of_our_own_is_not_reachable_from_outside(cluster: None) -> None:
    assert ray.util.get_node_ip_address() == "127.0.0.1"
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_our_errors_keep_their_class(troubled: list[Member]) -> None:
    with pytest.raises(DataError, match=r"^media 12ab: is damaged$") as caught:
        wait_all([Call(m, m.handle.raise_ours.remote()) for m in troubled], 30, "testing")
    assert type(caught.value) is DataError
    with pytest.raises(ZeroDivisionError, match="raise_foreign"):  # a bug keeps its remote traceback
        wait_all([Call(troubled[0], troubled[0].handle.raise_foreign.remote())], 30, "testing")


def test_a_dead_actor_is_named_with_its_log(start: Callable[[int], Member], troubled: list[Member]) -> None:
    victim = start(2)
    call = Call(victim, victim.handle.hang.remote())
    kill_soon(victim)
    began = time.monotonic()
    with pytest.raises(ActorError, match=r"^troubled 2 died while testing \(.*hang in the collective"):
        wait_all([call, Call(troubled[1], troubled[1].handle.fine.remote())], 60, "testing")
    assert time.monotonic() - began < 20


def test_a_foreign_error_caused_by_a_dead_peer_blames_the_peer(
    start: Callable[[int], Member], troubled: list[Member]
) -> None:
    victim = start(3)
    call = Call(victim, victim.handle.hang.remote())
    kill_soon(victim)
    with pytest.raises(ActorError, match=r"^troubled 3 died while testing"):
        wait_all([call, Call(troubled[1], troubled[1].handle.raise_foreign.remote())], 60, "testing")


def test_streams_interleave_and_are_bounded(troubled: list[Member]) -> None:
    calls = [Call(m, m.handle.items.remote(3, 0.05)) for m in troubled]
    assert sorted(stream(calls, 30, "testing")) == [0, 0, 1, 1, 2, 2]


def test_a_silent_actor_is_named_with_its_stacks(troubled: list[Member]) -> None:
    began = time.monotonic()
    calls = [Call(troubled[0], troubled[0].handle.hang.remote()), Call(troubled[1], troubled[1].handle.fine.remote())]
    with pytest.raises(
        ActorError,
        match=r"^troubled 0 did not answer within 2 s while testing; it is in hang \(troubled_actor.py:\d+\); the "
        r"stacks of its threads are at the end of .*_0.log$",
    ):
        wait_all(calls, 2.0, "testing")
    assert time.monotonic() - began < 10
    log = troubled[0].log.read_text()
    assert "about to hang in the collective" in log
    assert "in hang" in log  # the stack dump
    stuck = Call(troubled[0], troubled[0].handle.items.remote(3, 0.05))  # queued behind it
    with pytest.raises(ActorError, match=r"troubled 0 did not answer within 1 s while testing; it is in hang "):
        list(stream([stuck], 1.0, "testing"))


@pytest.mark.parametrize("way", ["wait_for_others", "be_ended_by_nccl"])
def test_a_rank_that_does_not_come_to_a_collective_is_named(start: Callable[[int], Member], way: str) -> None:
    members = [replace(start(rank), role="learner") for rank in (0, 1)]
    waits = Call(members[0], getattr(members[0].handle, way).remote())
    hangs = Call(members[1], members[1].handle.hang.remote())
    began = time.monotonic()
    with pytest.raises(
        CollectiveError,
        match=r"^learner 0 waited for other learner ranks longer than learner.collective_timeout_s=3 while updating; "
        r"learner 1 did not come; it is in hang \(troubled_actor.py:\d+\); the stacks of its threads are at the end of "
        r".*_1.log$",
    ) as caught:
        wait_all([waits, hangs], 60, "updating")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 20
    for member in members:
        ray.kill(member.handle)


def test_a_rank_that_dies_while_it_sends_ends_the_load(start: Callable[[int], Member]) -> None:
    """The engine waits for it, and would until its own limit."""
    sender, engine = start(4), start(5)
    loads = Call(engine, engine.handle.hang.remote())
    sends = Call(sender, sender.handle.hang.remote())
    kill_soon(sender)
    with pytest.raises(ActorError, match=r"^troubled 4 died while loading weights"):
        wait_all([loads], 60, "loading weights", beside=[sends])
    ray.kill(engine.handle)


def test_an_answer_beside_is_not_waited_for(troubled: list[Member], start: Callable[[int], Member]) -> None:
    slow = start(6)
    beside = [Call(slow, slow.handle.hang.remote()), Call(troubled[1], troubled[1].handle.fine.remote())]
    assert wait_all([Call(troubled[1], troubled[1].handle.fine.remote())], 30, "testing", beside=beside) == [7]
    ray.kill(slow.handle)


def test_weights_are_sent_again_when_everyone_has_given_up(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One engine fails at once, the other a second later: no new offer meets an old wait."""
    gives_up_s = {("learner", 0): 0.2, ("rollout", 0): 0.0, ("rollout", 1): 1.0}
    members = []
    for (role, rank), seconds in gives_up_s.items():
        log = tmp_path / f"{role}_{rank}.log"
        handle = ray.remote(Unconnected).options(num_cpus=0).remote(f"{role} {rank}", log, gives_up_s=seconds)
        members.append(Member(handle, role, rank, log, ""))
    own = {"send_timeout_s": 60.0, "keeps_offers": False, "attention_kernel": "sdpa"}
    learner = RayLearner(members[:1], 1, 60.0, **own)  # type: ignore[arg-type]
    generator = RayGenerator(members[1:], 60.0, 60.0, learner.sending)
    try:
        assert Publisher(learner, generator).publish(1) == 2  # a tensor in each of two engines
        calls = [Call(member, member.handle.events.remote()) for member in members]
        sender, *engines = wait_all(calls, 30, "testing")
    finally:
        for member in members:
            ray.kill(member.handle)
    assert capsys.readouterr().err == "weights 1 were not received: the cable is out; sending them again\n"
    assert [what for what, _ in sender] == ["offers", "gives up", "offers", "is done"]
    assert all([what for what, _ in engine] == ["gives up", "is done"] for engine in engines)
    second = sender[2][1]
    assert all(engine[0][1] <= second for engine in engines)


def test_resources_that_are_taken_are_waited_for_and_then_named(cluster: None) -> None:
    assert not nodes_may_join()
    began = time.monotonic()
    with pytest.raises(SetupError, match=r"the run needs 1000 CPUs \(learner 2 x 500\), the cluster has"):
        reserve([Bundle("learner", rank, 500, 0) for rank in range(2)], 600.0, nodes_may_join=False, tell=print)
    assert time.monotonic() - began < 5  # nothing can join this cluster
    cpus = ray.cluster_resources()["CPU"]
    held = reserve([Bundle("rollout", 0, cpus, 0)], 10.0, nodes_may_join=False, tell=print)
    with pytest.raises(SetupError, match=r"no room on the cluster after 1 s: the run needs 1 CPU \(free: 0\);"):
        reserve([Bundle("reward", 0, 1, 0)], 1.0, nodes_may_join=False, tell=print)
    ray.util.remove_placement_group(held)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_models(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[Prompt]:
    return prompts_of(folder)


@pytest.fixture(scope="module")
def roles(cluster: None, folder: Path) -> Iterator[RayRoles]:
    roles = started_roles(folder)
    yield roles
    roles.close()


def test_one_training_step_over_real_actors(roles: RayRoles, prompts: list[Prompt]) -> None:
    publisher = Publisher(roles.learner, roles.generator)
    for version in range(2):
        began = time.monotonic()
        publisher.publish(version)
        synced = time.monotonic()
        by_id, rollouts = {p.id: p for p in prompts}, []
        completions = list(roles.generator.generate(prompts, SAMPLING))
        generated = time.monotonic()
        assert {completion.weight_version for completion in completions} == {version}
        for prompt in prompts:
            roles.rewarder.submit([c for c in completions if c.prompt_id == prompt.id], prompt)
        verdicts = roles.rewarder.collect()
        assert verdicts.keys() == {f"{p.id}#{i}" for p in prompts for i in range(4)}
        for completion in completions:
            advantage = float(completion.index) - 1.5
            rollouts.append(Rollout(by_id[completion.prompt_id], completion, verdicts[completion.id], advantage))
        assert roles.reference is not None
        for model in (roles.reference, *roles.teachers):
            for half in (rollouts[:8], rollouts[8:]):
                model.submit([rollout.sample() for rollout in half])
        judged = time.monotonic()
        samples = sorted((rollout.sample() for rollout in rollouts), key=lambda s: s.id)
        plan = plan_updates(samples, updates=2, shards=roles.learner.shards, max_tokens=200)
        behaviour, reference = roles.learner.score(plan), roles.reference.collect(plan)
        looks = roles.learner.visual_rewards(behaviour)
        assert looks.keys() == verdicts.keys() and all(0 < r < 1 for r in looks.values())
        assert roles.reference.visual_rewards(reference) == {}  # it is the policy's that was asked for
        kl = roles.learner.kl(behaviour, reference)
        assert kl.keys() == verdicts.keys()
        assert all(value < 1e-9 for value in kl.values()) == (version == 0)  # then the policy is the reference
        scored = time.monotonic()
        teaching = [teacher.collect(plan) for teacher in roles.teachers]
        queued = [roles.learner.update(plan, k, behaviour, reference, *teaching) for k in range(2)]
        metrics = [answer() for answer in queued]
        updated = time.monotonic()
        times = (synced - began, generated - synced, judged - generated, scored - judged, updated - scored)
        print("sync, generate, judge, score, update:", " ".join(f"{t:.2f}" for t in times), "s")
        print(metrics[0])
        if version == 0:  # the policy is still the teacher of tokens, and another model teaches attention
            assert abs(metrics[0]["distillation/token_divergence"]) < 1e-9
        assert metrics[1]["distillation/token_divergence"] > 1e-7
        assert all(m["distillation/attention_divergence"] > 1e-4 for m in metrics)
    before, after = (roles.learner.validate(plan), roles.learner.fit(plan, 0)())  # as perceive asks them
    assert before["held_out/loss"] == pytest.approx(after["supervised/loss"]) and before["held_out/loss"] > 1
    assert before["held_out/token_accuracy"] == pytest.approx(after["supervised/token_accuracy"])


def test_two_processes_of_the_reference_find_the_scores_of_one(roles: RayRoles, prompts: list[Prompt]) -> None:
    by_id = {p.id: p for p in prompts}
    samples = sorted(
        (Sample.of(by_id[c.prompt_id], c) for c in roles.generator.generate(prompts, SAMPLING)), key=lambda s: s.id
    )
    plan = plan_updates(samples, updates=2, shards=2, max_tokens=200, deal="samples")  # groups go to both ranks
    members = [m for m in roles.members if m.role == "reference"]
    found = []
    for count in (1, 2):
        reference = RayFrozenModel(members[:count], 8, 60.0)
        for group in groups_of(samples):
            reference.submit(group)
        ranks = reference.collect(plan)
        assert [len(parts) for parts in ranks] == [count] * 2
        found.append([{k: v for part in parts for k, v in ray.get(part.scores).items()} for parts in ranks])
    for rank, (one, two) in enumerate(zip(*found, strict=True)):
        assert one.keys() == two.keys() == set(plan.rank_ids(rank))
        assert all(np.array_equal(one[id].log_probs, two[id].log_probs) for id in one)


def test_two_engines_make_the_completions_of_one(roles: RayRoles, prompts: list[Prompt]) -> None:
    """Whole groups go to either, and a single one is shared out."""
    members = [m for m in roles.members if m.role == "rollout"]
    for some in (prompts, prompts[:1]):
        each = (RayGenerator(members[:count], 60.0, 60.0).generate(some, SAMPLING) for count in (1, 2))
        one, two = ({c.id: c for c in completions} for completions in each)
        assert one.keys() == two.keys() == {f"{p.id}#{i}" for p in some for i in range(4)}
        for id, completion in one.items():
            assert completion.token_ids == two[id].token_ids
            assert np.allclose(completion.log_probs, two[id].log_probs, rtol=0, atol=1e-4)


def test_a_gate_that_fails_in_a_rank_is_a_gate_error_here(roles: RayRoles, prompts: list[Prompt]) -> None:
    completions = [
        replace(c, log_probs=tuple(p - 0.01 for p in c.log_probs)) for c in roles.generator.generate(prompts, SAMPLING)
    ]
    by_id = {p.id: p for p in prompts}
    samples = [Rollout(by_id[c.prompt_id], c, None, 1.0).sample() for c in completions]  # type: ignore[arg-type]
    plan = plan_updates(samples, updates=1, shards=2, max_tokens=200)
    with pytest.raises(GateError, match="rollout and learner log-probs differ"):
        roles.learner.score(plan)


def test_weights_reach_engines_that_generate(roles: RayRoles, prompts: list[Prompt]) -> None:
    """Responses go on with them, and two ranks score each token at the weights that made it."""
    publisher = Publisher(roles.learner, roles.generator)
    publisher.publish(2)
    long = Sampling(completions=40, temperature=1.0, max_new_tokens=60, seed=4)
    generation = roles.generator.generate(prompts, long)
    first = next(generation)  # so engines are at it, whether or not anybody listens
    publisher.publish(3)
    completions = [first, *generation]
    by_id = {p.id: p for p in prompts}
    samples = [Rollout(by_id[c.prompt_id], c, None, 1.0).sample() for c in completions]  # type: ignore[arg-type]
    assert {s.weight_versions for s in samples} >= {(2, 3)}
    plan = plan_updates(samples, updates=1, shards=2, max_tokens=200)
    refs = roles.learner.score(plan)
    assert len(roles.learner.visual_rewards(refs)) == len(samples)


def test_a_teacher_that_cannot_score_says_so_soon_and_when_collected(roles: RayRoles, prompts: list[Prompt]) -> None:
    teacher = roles.teachers[0]
    good = Sample("good", prompts[0], (20, 21))
    bad = Sample("bad", replace(prompts[0], token_ids=prompts[0].token_ids[:3], engine_token_ids=()), (20, 21))
    plan = plan_updates([replace(good, id=f"g{i}") for i in range(2)], updates=1, shards=2, max_tokens=200)
    with pytest.raises(DataError, match="sample bad has none, but its media make 4 image tokens"):
        teacher.submit([bad])  # raises already where the actor is quick
        teacher.collect(plan)
    with pytest.raises(DataError, match="sample bad"):
        teacher.submit([bad])
        for _ in range(200):
            time.sleep(0.05)
            teacher.submit([good])


def test_a_killed_engine_ends_generation_and_names_it(roles: RayRoles, prompts: list[Prompt]) -> None:
    stream_of_two = roles.generator.generate(prompts, Sampling(200, 1.0, 12, 0))
    next(stream_of_two)
    victim = next(m for m in roles.members if m.name == "rollout 1")
    began = time.monotonic()
    os.kill(int(victim.log.read_text().rsplit("pid ", 1)[1].split()[0]), signal.SIGKILL)
    with pytest.raises(ActorError, match=r"^rollout 1 died while generating .*rollout_1.log"):
        list(stream_of_two)
    assert time.monotonic() - began < 30


def test_a_killed_teacher_is_named_by_whoever_waits_for_it(roles: RayRoles, prompts: list[Prompt]) -> None:
    victim = next(m for m in roles.members if m.name == "teacher 1")
    samples = [Sample(f"k{i}", prompts[0], (20, 21)) for i in range(4)]
    pid = int(victim.log.read_text().rsplit("pid ", 1)[1].split()[0])
    os.kill(pid, signal.SIGSTOP)  # so that it has not scored them when it dies
    roles.teachers[1].submit(samples)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorError, match=r"^teacher 1 died while scoring .*teacher_1.log"):
        roles.teachers[1].collect(plan_updates(samples, updates=1, shards=2, max_tokens=200))
    assert time.monotonic() - began < 30


def test_a_learner_rank_that_hangs_is_noticed_by_the_others(
    roles: RayRoles, folder: Path, prompts: list[Prompt]
) -> None:
    """In a group of DeepSpeed's own, which has made it with no limit but gloo's half an hour."""
    (medium,) = prompts[0].media
    medium = replace(medium, digest="ab" * 32)
    samples = [Sample(f"h{i}", prompts[0], (20, 21)) for i in range(4)]
    plan = plan_updates(samples, updates=1, shards=2, max_tokens=200)
    other = set(plan.rank_ids(1))
    samples = [replace(s, prompt=replace(s.prompt, media=(medium,))) if s.id in other else s for s in samples]
    plan = plan_updates(samples, updates=1, shards=2, max_tokens=200)
    assert other == set(plan.rank_ids(1))
    picture = MediaStore(folder / "media").path(medium)
    picture.parent.mkdir(exist_ok=True)
    os.mkfifo(picture)  # whose reader waits, as for a file system that does not answer
    began = time.monotonic()
    with pytest.raises(
        CollectiveError,
        match=r"^learner 0 waited for other learner ranks longer than learner.collective_timeout_s=15 while "
        r"updating; learner 1 did not come; it is in open \(pathlib.py:\d+\), from _read \(store.py:\d+\), from "
        r"_decode \(store.py:\d+\); the stacks of its threads are at the end of .*learner_1.log$",
    ):
        roles.learner.fit(plan, 0)()
    assert 15 <= time.monotonic() - began < 60


def test_close_returns_when_no_process_is_left(
    roles: RayRoles, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what an actor has started, here a process that would stay."""
    monkeypatch.setattr("ral_system.actors.ending.GRACE_S", 5.0)  # half of what a run gives them
    pids = {m.name: int(m.log.read_text().rsplit("pid ", 1)[1].split()[0]) for m in roles.members}
    variables = Path(f"/proc/{pids['reward 0']}/environ").read_bytes().decode().split("\0")
    environment = dict(variable.split("=", 1) for variable in variables if variable)
    child = subprocess.Popen(["sleep", "600"], env=environment)
    began = time.monotonic()
    roles.close()
    assert not [name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()]
    assert child.wait(1) == -signal.SIGKILL
    assert time.monotonic() - began < 20
    said = [line for line in capfd.readouterr().err.splitlines() if "behind" in line]
    assert said == [f"warning: reward 0 left process {child.pid} (sleep) on node 127.0.0.1 behind; it was killed"]
