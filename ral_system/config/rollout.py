"""The `rollout` group: generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ral_system.config.base import Fraction, Group, NameIn, Positive, PositiveFloat, Resumable
from ral_system.config.choices import Dtype
from ral_system.registry import WEIGHT_TRANSFERS

OnNewWeights = Literal["finish", "continue", "discard"]


class LogProbGateConfig(Group):
    """How far rollout engine and learner may differ: bounds on |Δ log-prob| of a batch's sampled tokens, at the same
    weights, in nats. A batch beyond any of them ends the run.
    """

    token: PositiveFloat
    """A token beyond it is an outlier: the policy loss leaves it out, and `gate/log_prob_outlier_share` counts it."""
    outliers: Annotated[float, Field(ge=0, lt=1)]
    """Largest share of the tokens that may be outliers; more than 0 always allows one, 0 none."""
    mean: PositiveFloat | None
    """Bound on the mean; null: none."""
    p999: PositiveFloat | None
    """Bound on the 99.9 % quantile; null: none."""


class AskedRolloutConfig(Group):
    """How long prompts and responses may be, and what reads them."""

    engine: Literal["hf", "vllm"]
    max_new_tokens: Positive
    max_model_len: Positive
    """Prompt and response together, in tokens, visual tokens included."""

    def response_limit(self, prompt_tokens: int) -> int:
        """Tokens at which a response to a prompt of this length is cut: `max_new_tokens`, or the room that is left."""
        return min(self.max_new_tokens, self.max_model_len - prompt_tokens)

    def problems(self) -> Iterator[str]:
        """Refuse responses that leave no room for a prompt."""
        if self.max_new_tokens >= self.max_model_len:
            yield (
                f"rollout.max_new_tokens={self.max_new_tokens} leaves no room for a prompt in "
                f"rollout.max_model_len={self.max_model_len}; raise the latter"
            )


class EngineGroup(AskedRolloutConfig):
    """What both engines read."""

    temperature: PositiveFloat
    stop_at_answer: bool
    """End a response at `</answer>`, even if the model would continue."""
    max_sequences: Annotated[Positive, Resumable]
    """Sequences an engine decodes at once."""
    dtype: Dtype

    @property
    def handover(self) -> OnNewWeights:
        """When the engine takes new weights; those of an evaluation stay."""
        return "finish"


class HfEngineConfig(EngineGroup):
    """A transformers model in one process: slow and exact."""

    engine: Literal["hf"]


class VllmEngineConfig(EngineGroup):
    """A vLLM engine."""

    MEDIA_CACHE_GIB: ClassVar[int] = 1
    """Processed media that an engine keeps in host memory."""

    engine: Literal["vllm"]
    tensor_parallel: Annotated[Positive, Resumable]
    """Ranks of one engine, all on one node."""
    memory_gib: Annotated[PositiveFloat | None, Resumable]
    """Key-value cache on CPU engines."""
    gpu_memory_utilization: Annotated[Fraction, Resumable]


EngineConfig = Annotated[HfEngineConfig | VllmEngineConfig, Field(discriminator="engine")]


class RolloutGroup(EngineGroup):
    """What training reads of both engines."""

    workers: Annotated[Positive, Resumable]
    """Engines. Prompts are distributed to them by load; with fewer prompts than engines, the responses of a prompt are
    distributed."""
    weight_transfer: Annotated[Annotated[str, NameIn(WEIGHT_TRANSFERS)] | None, Resumable]
    """How weights travel from learners to engines. broadcast: from device to device, by NCCL or gloo. shared_memory:
    through memory of the one node that holds both. object_store: as arrays in Ray's object store, or in memory. files:
    in a file of the run's folder, which learners and engines must share. null: broadcast; shared_memory with
    `cluster.placement=colocated`; object_store with `cluster=local` and with `algorithm.max_staleness` > 0. Packages
    can add others."""
    weight_timeout_s: Annotated[PositiveFloat, Resumable]
    """Bound on each wait of learners and engines for each other during a weight transfer. After it they connect again
    and retry once; then the run ends."""
    on_new_weights: Annotated[OnNewWeights, Resumable]
    """Treatment of unfinished responses when new weights are ready, with `algorithm.max_staleness` > 0. finish:
    weights change between two batches only. continue: at once; the response goes on from its last token with the new
    ones. discard: at once; the response is begun again."""
    log_prob_gate: Annotated[LogProbGateConfig, Resumable]

    @property
    def handover(self) -> OnNewWeights:
        """When the engine takes new weights."""
        return self.on_new_weights


class HfRolloutConfig(HfEngineConfig, RolloutGroup):
    """Transformers engines."""


class VllmRolloutConfig(VllmEngineConfig, RolloutGroup):
    """vLLM engines."""


RolloutConfig = Annotated[HfRolloutConfig | VllmRolloutConfig, Field(discriminator="engine")]
