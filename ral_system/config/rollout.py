"""The `rollout` group: generation of responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ral_system.config.base import Fraction, Group, NameIn, Positive, PositiveFloat, Resumable
from ral_system.config.choices import Dtype
from ral_system.registry import WEIGHT_TRANSFERS

OnNewWeights = Literal["finish", "continue", "discard"]


class LogProbGateConfig(Group):
    """Bounds on the difference between rollout engine and learner: |Δ log-prob| of the sampled tokens of a batch, at
    the same weights, in nats. A batch beyond a bound ends the run."""

    token: PositiveFloat
    """Bound for a single token. A token beyond it is an outlier: the policy loss leaves it out, and
    `gate/log_prob_outlier_share` counts it."""
    outliers: Annotated[float, Field(ge=0, lt=1)]
    """Largest share of tokens that may be outliers. 0 allows none; any larger value allows at least one."""
    mean: PositiveFloat | None
    """Bound on the mean. null: no bound."""
    p999: PositiveFloat | None
    """Bound on the 99.9 % quantile. null: no bound."""


class AskedRolloutConfig(Group):
    """Engine, and the lengths of prompts and responses."""

    engine: Literal["hf", "vllm"]
    """Engine that generates responses."""
    max_new_tokens: Positive
    """Largest number of tokens of a response."""
    max_model_len: Positive
    """Largest number of tokens of prompt and response together, including visual tokens."""

    def response_limit(self, prompt_tokens: int) -> int:
        """Return the number of tokens at which a response to a prompt of this length is cut."""
        return min(self.max_new_tokens, self.max_model_len - prompt_tokens)

    def problems(self) -> Iterator[str]:
        """Refuse responses that leave no room for a prompt."""
        if self.max_new_tokens >= self.max_model_len:
            yield (
                f"rollout.max_new_tokens={self.max_new_tokens} leaves no room for a prompt in "
                f"rollout.max_model_len={self.max_model_len}; raise the latter"
            )


class EngineGroup(AskedRolloutConfig):
    """Settings of both engines."""

    temperature: PositiveFloat
    """Sampling temperature."""
    stop_at_answer: bool
    """End a response at `</answer>`, even if the model would continue."""
    max_sequences: Annotated[Positive, Resumable]
    """Largest number of sequences that an engine decodes at once."""
    dtype: Dtype
    """Data type of the engine's weights and of computation."""

    @property
    def handover(self) -> OnNewWeights:
        """When the engine takes new weights; in an evaluation they do not change."""
        return "finish"


class HfEngineConfig(EngineGroup):
    """A transformers model in one process, slow and exact."""

    engine: Literal["hf"]


class VllmEngineConfig(EngineGroup):
    """A vLLM engine."""

    MEDIA_CACHE_GIB: ClassVar[int] = 1
    """Processed media that an engine keeps in host memory."""

    engine: Literal["vllm"]
    tensor_parallel: Annotated[Positive, Resumable]
    """Number of ranks of an engine, all on one node."""
    memory_gib: Annotated[PositiveFloat | None, Resumable]
    """Size of the key-value cache, in GiB, of an engine on CPU. null: vLLM chooses it."""
    gpu_memory_utilization: Annotated[Fraction, Resumable]
    """Share of the GPU's memory that an engine may use for weights, activations and key-value cache."""


EngineConfig = Annotated[HfEngineConfig | VllmEngineConfig, Field(discriminator="engine")]


class RolloutGroup(EngineGroup):
    """Settings of both engines in training."""

    workers: Annotated[Positive, Resumable]
    """Number of engines. Prompts are distributed to them by load. With fewer prompts than engines, the responses of a
    prompt are also distributed."""
    weight_transfer: Annotated[Annotated[str, NameIn(WEIGHT_TRANSFERS)] | None, Resumable]
    """How weights are transferred from learners to engines. broadcast: from device to device, by NCCL or gloo.
    shared_memory: through memory of the one node that holds both. object_store: as arrays in Ray's object store, or in
    memory. files: in a file of the run's folder, which learners and engines must share. null: broadcast; shared_memory
    with `cluster.placement=colocated`, and without GPUs if learners and engines are on one node; object_store with
    `cluster=local` and with `algorithm.max_staleness` > 0.
    Packages can add others."""
    weight_timeout_s: Annotated[PositiveFloat, Resumable]
    """Time limit, in seconds, for each wait of learners and engines for each other during a weight transfer. When it
    expires, they connect again and retry once; then the run ends."""
    on_new_weights: Annotated[OnNewWeights, Resumable]
    """Treatment of unfinished responses when new weights are ready, with `algorithm.max_staleness` > 0. finish: weights
    change only between two batches. continue: they change at once, and a response continues from its last token with
    the new weights. discard: they change at once, and a response starts again."""
    log_prob_gate: Annotated[LogProbGateConfig, Resumable]
    """Bounds on the difference between rollout engine and learner."""

    @property
    def handover(self) -> OnNewWeights:
        """When the engine takes new weights."""
        return self.on_new_weights


class HfRolloutConfig(HfEngineConfig, RolloutGroup):
    """Rollouts by transformers models, slow and exact."""


class VllmRolloutConfig(VllmEngineConfig, RolloutGroup):
    """Rollouts by vLLM."""


RolloutConfig = Annotated[HfRolloutConfig | VllmRolloutConfig, Field(discriminator="engine")]
