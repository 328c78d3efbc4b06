"""What the controller needs from the roles of a run. Each has two implementations: in process, and behind Ray actors.

`Ref` is an opaque reference to a value held elsewhere (a Ray object reference, or the value itself in process). Large
values (scores, weights) travel as refs from role to role; the controller never opens one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ral_system.types import (
    Completion,
    Completions,
    Prompt,
    RewardResult,
    Sample,
    Sampling,
    TrainPlan,
    VisualAttention,
    WeightManifest,
)

Ref = Any


class Generator(Protocol):
    """A pool of rollout engines."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Completions:
        """Yield `sampling.completions` completions of every prompt, each as soon as it is finished, in any order."""
        ...

    def load_weights(self, weights: Ref) -> Sequence[WeightManifest]:
        """Load published weights into every engine, drop all caches; return what each engine holds afterwards.

        Another thread's `generate` may be under way, unless `rollout.on_new_weights` is finish.
        """
        ...


class Rewarder(Protocol):
    """A pool of verifiers."""

    def submit(self, completion: Completion, prompt: Prompt) -> None:
        """Start judging; returns at once."""
        ...

    def collect(self) -> Mapping[str, RewardResult]:
        """Wait (bounded) for everything submitted since the last call; completion id → verdict."""
        ...


class Scorer(Protocol):
    """A frozen model: the reference."""

    def score(self, plan: TrainPlan) -> Sequence[Ref]:
        """Scores of every sample of the plan, one ref (to `Scores`) per learner rank."""
        ...

    def visual_rewards(self, scores: Sequence[Ref]) -> Mapping[str, float]:
        """What `score` found of `reward.visual`: sample id → r_vis, without those where it is undefined."""
        ...


class Teacher(Protocol):
    """A frozen model that the policy learns from. It scores while rollouts and rewards go on."""

    def submit(self, samples: Sequence[Sample]) -> None:
        """Start scoring; returns at once."""
        ...

    def collect(self, plan: TrainPlan) -> Sequence[Ref]:
        """Scores of every sample of the plan, all of them submitted before; one ref (to `Scores`) per learner rank."""
        ...


class Learner(Protocol):
    """The trained policy, on one or more ranks."""

    world_size: int

    def score(self, plan: TrainPlan) -> Sequence[Ref]:
        """Old log-probs and attention, each token's at the weights that made it; one ref (to `Scores`) per rank."""
        ...

    def visual_rewards(self, scores: Sequence[Ref]) -> Mapping[str, float]:
        """What `score` found of `reward.visual`: sample id → r_vis, without those where it is undefined."""
        ...

    def kl(self, behaviour: Sequence[Ref], reference: Sequence[Ref]) -> Mapping[str, float]:
        """Sample id → its response's KL to the reference at the rollout's weights, from what both scored."""
        ...

    def update(
        self,
        plan: TrainPlan,
        index: int,
        behaviour: Sequence[Ref],
        reference: Sequence[Ref] | None,
        *teachers: Sequence[Ref],
    ) -> Mapping[str, float]:
        """The plan's `index`-th optimiser update with the policy objective; metrics of all ranks combined."""
        ...

    def fit(self, plan: TrainPlan, index: int) -> Mapping[str, float]:
        """The plan's `index`-th optimiser update with the supervised objective (cross-entropy of the responses)."""
        ...

    def validate(self, plan: TrainPlan) -> Mapping[str, float]:
        """The supervised objective on held-out demonstrations, without an update: loss and token accuracy."""
        ...

    def look(self, samples: Sequence[Sample]) -> Mapping[str, VisualAttention]:
        """Where the rows of each sample's answer look on its picture; sample id → map. For pictures, not training."""
        ...

    def publish(self, version: int) -> tuple[WeightManifest, Ref]:
        """The current weights as a version: their manifest, and a ref (to an `Offer`) for the engines."""
        ...

    def send(self, offer: Ref) -> Callable[[], None]:
        """Start to send what was published to the engines that receive it now, if the transfer of weights keeps no
        offers. Returns what waits for the end.
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


class Roles(Protocol):
    """The roles of one stage, started together and shut down together."""

    generator: Generator
    learner: Learner
    rewarder: Rewarder
    reference: Scorer | None
    teachers: Sequence[Teacher]

    def close(self) -> None:
        """End every process that this stage started."""
        ...
