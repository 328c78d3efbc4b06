"""The controller's protocols on top of actors: what `ral_system.protocols` asks for, with every wait bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from ral_system.actors.group import Call, Member, stream, wait_all
from ral_system.batches.micro_batches import Bundler, groups_of, price
from ral_system.errors import WeightTransferError
from ral_system.observability.work import meters
from ral_system.protocols import Ref
from ral_system.rollout.dealing import deal
from ral_system.types import (
    Completion,
    Completions,
    Held,
    Prompt,
    Sample,
    Sampling,
    TensorDigest,
    TrainPlan,
    Verdict,
    VisualAttention,
    WeightManifest,
)


@dataclass(frozen=True, slots=True)
class RemoteScores:
    """Scores that an actor holds or still computes; `done` resolves to the visual rewards or raises the error.

    A rank's scores by a frozen model are a list of these, one for each actor that scored some of its samples.
    """

    done: Call
    scores: Any


class RayGenerator:
    """`Generator` over rollout actors.

    `load_timeout_s` bounds a load of weights, `sending` returns the learners' part in the one that goes on.
    """

    def __init__(
        self,
        members: Sequence[Member],
        call_timeout_s: float,
        load_timeout_s: float,
        sending: Callable[[], Sequence[Call]] = tuple,
    ) -> None:
        self._members = members
        self._timeout_s, self._load_timeout_s = call_timeout_s, load_timeout_s
        self._sending = sending

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Completions:
        """Deal the prompts to the engines by load, and yield completions of all engines as they finish."""
        shares = deal(prompts, sampling, len(self._members))
        calls = [
            Call(member, member.handle.generate.remote(share, sampling))
            for member, share in zip(self._members, shares, strict=True)
            if share
        ]
        for finished in stream(calls, self._timeout_s, "generating"):
            yield from finished

    def held(self, published: WeightManifest) -> Sequence[WeightManifest]:
        """Ask all engines at once."""
        calls = [Call(member, member.handle.held.remote(published)) for member in self._members]
        return wait_all(calls, self._timeout_s, "reading weights")

    def load_weights(self, weights: Ref) -> Sequence[WeightManifest]:
        """Load into all engines at once; weights travel from learner to engines, not through this process."""
        calls = [Call(member, member.handle.load_weights.remote(weights)) for member in self._members]
        return _wait_together(calls, self._load_timeout_s, "loading weights", beside=self._sending())


class RayHolder:
    """`Holder` over all actors of one or several roles."""

    def __init__(self, members: Sequence[Member], call_timeout_s: float) -> None:
        self._members = members
        self._timeout_s = call_timeout_s

    def hold(self, held: Held) -> None:
        """Make every actor hold this much memory."""
        calls = [Call(member, member.handle.hold.remote(held)) for member in self._members]
        wait_all(calls, self._timeout_s, f"changing what it holds on the shared device to {held.words}")


class RayRewarder:
    """`Rewarder` over the stage's reward actor; `members` is empty in a stage that judges nothing."""

    def __init__(self, members: Sequence[Member], call_timeout_s: float) -> None:
        self._members = members
        self._timeout_s = call_timeout_s
        self._submitted: list[Call] = []

    def submit(self, completions: Sequence[Completion], prompt: Prompt) -> None:
        """Start judging, in one call; `collect` raises if that fails."""
        (member,) = self._members
        self._submitted.append(Call(member, member.handle.submit.remote(completions, prompt)))

    def collect(self) -> Mapping[str, Verdict]:
        """Wait for everything submitted since the last call."""
        submitted, self._submitted = self._submitted, []
        (member,) = self._members
        verdicts = Call(member, member.handle.collect.remote())
        return wait_all([*submitted, verdicts], self._timeout_s, "judging")[-1]


class RayFrozenModel:
    """`FrozenModel` over scorer actors with the same model, which share the groups of a batch.

    Groups go in bundles, each to the actor that was given the fewest tokens of the batch so far, so the same batch is
    always shared out in the same way. `max_tokens`: those of a pass.
    """

    def __init__(self, members: Sequence[Member], max_tokens: int, call_timeout_s: float) -> None:
        self._members = members
        self._bundler = Bundler(max_tokens)
        self._timeout_s = call_timeout_s
        self._calls: list[Call] = []
        self._tokens = [0] * len(members)
        self._scored_by: dict[str, int] = {}

    def submit(self, samples: Sequence[Sample]) -> None:
        """Start scoring, or wait for more. A failure is raised by the first call that finds it, this one at the
        earliest.
        """
        if bundle := self._bundler.add(samples):
            self._send(bundle)
        refs = [call.ref for call in self._calls]
        ready = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) if refs else set()
        wait_all([call for call in self._calls if call.ref in ready], self._timeout_s, "scoring")
        self._calls = [call for call in self._calls if call.ref not in ready]

    def _send(self, samples: Sequence[Sample]) -> None:
        index = self._tokens.index(min(self._tokens))
        self._tokens[index] += sum(map(price, groups_of(samples)))
        self._scored_by |= dict.fromkeys((sample.id for sample in samples), index)
        member = self._members[index]
        self._calls.append(Call(member, member.handle.score.remote(samples)))

    def collect(self, plan: TrainPlan) -> Sequence[Ref]:
        """Wait for the submitted samples; the scores stay with the actors until a learner asks for them."""
        if bundle := self._bundler.rest():
            self._send(bundle)
        calls, self._calls = self._calls, []
        wait_all(calls, self._timeout_s, "scoring")
        scored_by, self._scored_by = self._scored_by, {}
        self._tokens = [0] * len(self._members)
        ranks = []
        for rank in range(len(plan.updates[0].shards)):
            by_member: dict[int, list[str]] = {}
            for id in plan.rank_ids(rank):
                by_member.setdefault(scored_by[id], []).append(id)
            ranks.append([self._take(self._members[index], ids) for index, ids in sorted(by_member.items())])
        return ranks

    def _take(self, member: Member, ids: Sequence[str]) -> RemoteScores:
        done, scores = member.handle.take.remote(ids)
        return RemoteScores(Call(member, done), scores)

    def visual_rewards(self, scores: Sequence[Ref]) -> Mapping[str, float]:
        """Wait for the scores, and return the visual rewards of all samples."""
        return _visual_rewards(_parts(scores), self._timeout_s)


class RayWithoutAdapters:
    """`FrozenModel` over the learner ranks: their model without its adapters is the reference."""

    def __init__(self, members: Sequence[Member], shards: int, call_timeout_s: float) -> None:
        self._members, self._shards, self._timeout_s = members, shards, call_timeout_s

    def submit(self, samples: Sequence[Sample]) -> None:
        """Do nothing: each rank scores its own samples when the plan deals them."""

    def collect(self, plan: TrainPlan) -> Sequence[Ref]:
        """Each rank scores its own samples, after `RayLearner.score` of the same plan, and keeps the result."""
        ranks, whole = [], ray.put(plan)
        for member in self._members:
            done, scores = member.handle.score_reference.remote(whole)
            ranks.append([RemoteScores(Call(member, done), scores)])
        wait_all([part.done for part in _parts(ranks)], self._timeout_s, "scoring as the reference")
        return ranks[:: len(ranks) // self._shards]

    def visual_rewards(self, scores: Sequence[Ref]) -> Mapping[str, float]:
        """Return the visual rewards of all ranks' samples, by sample id."""
        return _visual_rewards(_parts(scores), self._timeout_s)


class RayLearner:
    """`Learner` over the learner ranks.

    Neighbours may have a shard together: there are `shards` in all. `keeps_offers` is that of their weight transfer,
    which `send_timeout_s` bounds.
    """

    def __init__(
        self,
        members: Sequence[Member],
        shards: int,
        call_timeout_s: float,
        *,
        send_timeout_s: float,
        keeps_offers: bool,
        attention_kernel: str,
    ) -> None:
        self._members, self._keeps_offers = members, keeps_offers
        self.attention_kernel = attention_kernel
        self._timeout_s, self._send_timeout_s = call_timeout_s, send_timeout_s
        self._sending: list[Call] = []
        self.shards = shards
        self._together = len(members) // shards

    def score(self, plan: TrainPlan) -> Sequence[Ref]:
        """Each rank scores its shard's samples, and the shard's first one keeps the result on its node."""
        refs, whole = [], ray.put(plan)
        for member in self._members:
            done, scores = member.handle.score.remote(whole)
            refs.append(RemoteScores(Call(member, done), scores))
        self._await(refs)
        return refs[:: self._together]

    def check_log_probs(self, plan: TrainPlan) -> float:
        """All ranks gate the whole plan together, each after scoring its own share."""
        whole = ray.put(plan)
        largest: float = self._all(lambda rank: rank.check_log_probs.remote(whole), "comparing log-probs")
        return largest

    def visual_rewards(self, scores: Sequence[Ref]) -> Mapping[str, float]:
        """Return the visual rewards of all ranks' samples, by sample id."""
        return _visual_rewards(scores, self._timeout_s)

    def kl(self, behaviour: Sequence[Ref], reference: Sequence[Ref]) -> Mapping[str, float]:
        """Each rank compares its own samples' scores with the reference's."""
        self._await(_parts(reference))
        calls = [
            Call(member, member.handle.kl.remote(mine.scores, *(part.scores for part in frozen)))
            for member, mine, frozen in zip(self._members[:: self._together], behaviour, reference, strict=True)
        ]
        found = wait_all(calls, self._timeout_s, "comparing with the reference")
        return {id: kl for part in found for id, kl in part.items()}

    def update(
        self,
        plan: TrainPlan,
        index: int,
        behaviour: Sequence[Ref],
        reference: Sequence[Ref] | None,
        *teachers: Sequence[Ref],
    ) -> Callable[[], Mapping[str, float]]:
        """Queue an update on all ranks; a wait for a frozen model's scores is reported under that model's name."""
        for refs in (reference or (), *teachers):
            self._await(_parts(refs))
        update = ray.put(plan.updates[index])
        calls = []
        for rank, member in enumerate(self._members):
            shard = rank // self._together
            by_reference = reference[shard] if reference else []
            frozen = [part.scores for part in (*by_reference, *_parts([refs[shard] for refs in teachers]))]
            done = member.handle.update.remote(update, behaviour[shard].scores, len(by_reference), *frozen)
            calls.append(Call(member, done))
        return lambda: wait_all(calls, self._timeout_s, "updating")[0]

    def fit(self, plan: TrainPlan, index: int) -> Callable[[], Mapping[str, float]]:
        """Queue an update on all ranks; it begins when they have made those before it."""
        update = ray.put(plan.updates[index])
        calls = [Call(member, member.handle.fit.remote(update)) for member in self._members]

        def wait() -> Mapping[str, float]:
            answers = wait_all(calls, self._timeout_s, "updating")
            metrics: Mapping[str, float] = answers[0][0]
            return {**metrics, **meters([work for _, work in answers])}

        return wait

    def validate(self, plan: TrainPlan) -> Mapping[str, float]:
        """Evaluate on all ranks together, each its own share."""
        update = ray.put(plan.updates[0])
        return self._all(lambda rank: rank.validate.remote(update), "validating")

    def meters(self) -> Mapping[str, float]:
        """Return the figures of all ranks together."""
        calls = [Call(member, member.handle.work.remote()) for member in self._members]
        return meters(wait_all(calls, self._timeout_s, "counting"))

    def look(self, samples: Sequence[Sample]) -> Mapping[str, VisualAttention]:
        """All ranks compute the same maps."""
        return self._all(lambda rank: rank.look.remote(samples), "looking at pictures")

    def publish(self, version: int) -> WeightManifest:
        """Return rank 0's manifest."""
        return self._all(lambda rank: rank.publish.remote(version), "publishing weights")

    def offer(self, manifest: WeightManifest, names: Sequence[str]) -> tuple[Mapping[str, TensorDigest], Ref]:
        """Return the digests that rank 0 has read, and a reference to its offer, which this process never fetches."""
        answers = [member.handle.offer.remote(manifest, names) for member in self._members]
        calls = [Call(member, answer[0]) for member, answer in zip(self._members, answers, strict=True)]
        read: Mapping[str, TensorDigest] = wait_all(calls, self._timeout_s, "offering weights")[0]
        return read, answers[0][1]

    def send(self, offer: Ref) -> Callable[[], Mapping[str, TensorDigest]]:
        """Make all ranks send what was offered; return a function that waits for them."""
        if self._keeps_offers:  # which may hold all weights: no rank should be given them
            return lambda: {}
        calls = [Call(member, member.handle.send.remote(offer)) for member in self._members]
        self._sending = calls

        def wait() -> Mapping[str, TensorDigest]:
            self._sending = []
            read: Mapping[str, TensorDigest] = _wait_together(calls, self._send_timeout_s, "sending weights")[0]
            return read

        return wait

    def sending(self) -> Sequence[Call]:
        """Return the calls that send weights, until their end is waited for."""
        return self._sending

    def save_model(self, folder: Path) -> None:
        """Write weights, config, tokenizer and processor."""
        self._all(lambda rank: rank.save_model.remote(folder), "saving the model")

    def save(self, folder: Path) -> None:
        """Write every rank's training state."""
        self._all(lambda rank: rank.save.remote(folder), "saving its state")

    def load(self, folder: Path) -> None:
        """Read every rank's training state."""
        self._all(lambda rank: rank.load.remote(folder), "loading its state")

    def _await(self, refs: Sequence[RemoteScores]) -> None:
        wait_all([ref.done for ref in refs], self._timeout_s, "scoring")

    def _all(self, call: Callable[[Any], Any], doing: str) -> Any:
        """Call every rank, and return rank 0's answer."""
        return wait_all([Call(member, call(member.handle)) for member in self._members], self._timeout_s, doing)[0]


def _wait_together(calls: Sequence[Call], timeout_s: float, doing: str, beside: Sequence[Call] = ()) -> list[Any]:
    """Wait like `wait_all`; if weights do not arrive, every call gives up before this does."""
    try:
        return wait_all(calls, timeout_s, doing, beside=beside)
    except WeightTransferError:
        ray.wait([call.ref for call in calls], num_returns=len(calls), timeout=timeout_s)
        raise


def _parts(ranks: Sequence[Sequence[RemoteScores]]) -> list[RemoteScores]:
    return [part for rank in ranks for part in rank]


def _visual_rewards(scores: Sequence[RemoteScores], timeout_s: float) -> dict[str, float]:
    found = wait_all([ref.done for ref in scores], timeout_s, "scoring")
    return {id: reward for part in found for id, reward in part.items()}
