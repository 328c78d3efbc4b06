"""Protocols of the roles that the controller uses. Each has two implementations: in process, and behind Ray actors.

`Ref` is an opaque reference to a value held elsewhere (a Ray object reference, or the value itself in process). Large
values (scores, weights) travel as refs from role to role; the controller never opens one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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

Ref = Any


class Generator(Protocol):
    """A pool of rollout engines."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Completions:
        """Yield `sampling.completions` completions of every prompt, each as soon as it is finished, in any order."""
        ...

    def held(self, published: WeightManifest) -> Sequence[WeightManifest]:
        """Return what each engine holds under the published names, read from its memory."""
        ...

    def load_weights(self, weights: Ref) -> Sequence[WeightManifest]:
        """Load offered weights into every engine, drop all caches; return what each engine holds afterwards.

        Another thread's `generate` may be under way, unless `rollout.on_new_weights` is finish.
        """
        ...


class Rewarder(Protocol):
    """A pool of verifiers."""

    def submit(self, completions: Sequence[Completion], prompt: Prompt) -> None:
        """Start judging completions of one prompt; returns at once."""
        ...

    def collect(self) -> Mapping[str, Verdict]:
        """Wait (bounded) for everything submitted since the last call; completion id → verdict."""
        ...


class FrozenModel(Protocol):
    """The reference or a teacher. It scores finished groups while others are generated and judged."""

    def submit(self, samples: Sequence[Sample]) -> None:
        """Start scoring; returns at once."""
        ...

    def collect(self, plan: TrainPlan) -> Sequence[Ref]:
        """Return scores of every sample of the plan, all submitted before; one ref (to `Scores`) per shard."""
        ...

    def visual_rewards(self, scores: Sequence[Ref]) -> Mapping[str, float]:
        """Return the r_vis of `reward.visual` that is among the scores, by sample id; undefined ones are left out."""
        ...


class Learner(Protocol):
    """The trained policy, on one or more ranks."""

    shards: int
    """Shards of a plan: ranks, or groups of ranks that hold their micro-batches together."""
    attention_kernel: str
    """What computes the text layers' attention."""

    def score(self, plan: TrainPlan) -> Sequence[Ref]:
        """Score old log-probs and attention, each token at the weights that made it; a ref (to `Scores`) per shard."""
        ...

    def check_log_probs(self, plan: TrainPlan) -> float:
        """Only hold the plan's rollout log-probs to `rollout.log_prob_gate`, as `score` does, at the current weights;
        return the largest difference, in nats.
        """
        ...

    def visual_rewards(self, scores: Sequence[Ref]) -> Mapping[str, float]:
        """Return the r_vis of `reward.visual` that `score` found, by sample id; undefined ones are left out."""
        ...

    def kl(self, behaviour: Sequence[Ref], reference: Sequence[Ref]) -> Mapping[str, float]:
        """Return each response's KL to the reference at the rollout's weights, by sample id, from both scores."""
        ...

    def update(
        self,
        plan: TrainPlan,
        index: int,
        behaviour: Sequence[Ref],
        reference: Sequence[Ref] | None,
        *teachers: Sequence[Ref],
    ) -> Callable[[], Mapping[str, float]]:
        """Make the plan's `index`-th optimiser update with the policy objective.

        Returns a function that waits for all ranks' combined metrics. Other updates may be started before it is called,
        but nothing else; the functions are called in the order of the updates, each once.
        """
        ...

    def fit(self, plan: TrainPlan, index: int) -> Callable[[], Mapping[str, float]]:
        """Make the plan's `index`-th optimiser update with the supervised objective (the responses' cross-entropy).

        Returns what `update` does; the metrics have the meters of this update with them.
        """
        ...

    def validate(self, plan: TrainPlan) -> Mapping[str, float]:
        """Evaluate the supervised objective on held-out demonstrations, without an update: loss and token accuracy."""
        ...

    def meters(self) -> Mapping[str, float]:
        """Return how fast all ranks made the updates since the last call: metrics by name."""
        ...

    def look(self, samples: Sequence[Sample]) -> Mapping[str, VisualAttention]:
        """Return maps of where the rows of each sample's answer look, by sample id; not for training."""
        ...

    def publish(self, version: int) -> WeightManifest:
        """Take the current weights as a version; return their identity.

        Tensors that were trained since they were last read are UNREAD: their digests come when they have travelled.
        """
        ...

    def offer(self, manifest: WeightManifest, names: Sequence[str]) -> tuple[Mapping[str, TensorDigest], Ref]:
        """Offer the named tensors of the version that was published last: a ref (to an `Offer`) for the engines.

        With it the digests of the tensors that were read for it: all of them if the transfer keeps offers, else none.
        """
        ...

    def send(self, offer: Ref) -> Callable[[], Mapping[str, TensorDigest]]:
        """Start to send what was offered to the engines that receive it now, if the transfer of weights keeps no
        offers. Returns what waits for the end, and gives the digests of what was sent.
        """
        ...

    def save_model(self, folder: Path) -> None:
        """Write weights, config, tokenizer and processor in Hugging Face format."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything needed to continue exactly: weights, optimiser, schedule."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote."""
        ...


class Holder(Protocol):
    """The processes of a role, on devices that they share with other roles."""

    def hold(self, held: Held) -> None:
        """Keep only this on the shared devices; the rest of their memory is free for others when it returns."""
        ...


@dataclass(frozen=True, slots=True)
class SharedDevices:
    """Roles that share devices, each in a phase of its own. At the start the engines hold nothing."""

    engines: Holder
    learner: Holder
    frozen: Holder


class Roles(Protocol):
    """The roles of one stage, started together and shut down together."""

    @property
    def generator(self) -> Generator:
        """The rollout engines."""
        ...

    @property
    def learner(self) -> Learner:
        """All ranks of the learner."""
        ...

    @property
    def rewarder(self) -> Rewarder:
        """The verifiers."""
        ...

    @property
    def reference(self) -> FrozenModel | None:
        """The frozen start model, in a stage that compares with it."""
        ...

    @property
    def teachers(self) -> Sequence[FrozenModel]:
        """The teachers to distil from; none outside rl."""
        ...

    @property
    def shared_devices(self) -> SharedDevices | None:
        """Devices that roles share, with `cluster.placement=colocated` in a stage that generates; otherwise None."""
        ...

    @property
    def devices(self) -> float:
        """GPUs of the stage; without GPUs its processes that have a model."""
        ...

    def close(self) -> None:
        """End every process that this stage started, and return when they have ended."""
        ...
