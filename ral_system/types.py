"""The values that cross a process. Frozen, slotted, made of plain Python and numpy: nothing here imports torch.

Token positions: a sequence is `prompt.token_ids + response token_ids`; P prompt tokens, R response tokens, T = P + R.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

Split = Literal["train", "held_out"]
MediaKind = Literal["image", "video"]
MARKS: Mapping[str, MediaKind] = {"<image>": "image", "<video>": "video"}
"""Where media stand in a question's text; without marks they come before it."""
MAX_MEDIA: Mapping[MediaKind, int] = {"image": 16, "video": 4}
"""In a prompt: rollout engines make room for as many."""


@dataclass(frozen=True, slots=True)
class VideoSampling:
    """How many frames stand for a video: `fps` a second within bounds, a multiple of `step`.

    Example: `VideoSampling(fps=1.0, max_frames=128, min_frames=4)`
    """

    fps: float
    max_frames: int
    min_frames: int
    step: int = 2
    """Frames that a model merges into one patch in time: 2 for Qwen's."""
    start_s: float = 0.0
    """Of the stretch that is looked at, from the video's first frame on."""
    end_s: float | None = None
    """None: to the video's end."""


@dataclass(frozen=True, slots=True)
class Clip:
    """What of a video is looked at.

    Example, two frames of ten seconds: `Clip(VideoSampling(0.2, 128, 2), times_s=(0.0, 9.97), duration_s=10.0)`
    """

    sampling: VideoSampling
    times_s: tuple[float, ...]
    """Of the sampled frames, from the video's first frame on."""
    duration_s: float
    """Of the stretch that is looked at."""

    @property
    def seconds_per_grid(self) -> float:
        """What Qwen2.5-VL's rotary positions count in: the time that one merged patch stands for, as qwen-vl-utils
        reckons it (duration / frames · step); to 8 significant bits, so that it is the same number in any precision.
        """
        per_frame = self.duration_s / len(self.times_s) or 1 / self.sampling.fps
        fraction, exponent = math.frexp(per_frame * self.sampling.step)
        return math.ldexp(round(fraction * 256), exponent - 8)


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or video by reference: what it is, not its pixels. The file lives in a `MediaStore` under `digest`.

    Example: `Media(digest="9f86d0…", width_px=84, height_px=84)`
    """

    digest: str
    """sha256 of the encoded file, hexadecimal."""
    width_px: int
    """As the model sees it."""
    height_px: int
    clip: Clip | None = None
    """Of a video; None: a picture."""

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Media:
        """From what `dataclasses.asdict` made of it, through JSON. Raises KeyError or TypeError for anything else."""
        clip = record["clip"]
        if clip is not None:
            clip = Clip(VideoSampling(**clip["sampling"]), tuple(clip["times_s"]), clip["duration_s"])
        return cls(str(record["digest"]), record["width_px"], record["height_px"], clip)

    @property
    def kind(self) -> MediaKind:
        """What it is."""
        return "image" if self.clip is None else "video"

    @property
    def frames(self) -> int:
        """1 of a picture."""
        return 1 if self.clip is None else len(self.clip.times_s)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the model sees it, with what is needed to judge the answer.

    Example: `Prompt(id="train/17", kind="attribute", question="what colour is the star ?", answer="red",
    media=(Media(…),), token_ids=(1, 5, 9, 9, 9, …))`
    """

    id: str
    kind: str
    """Question kind, for per-kind tables."""
    question: str
    answer: str
    media: tuple[Media, ...]
    token_ids: tuple[int, ...]
    """[P] chat-rendered, with every media placeholder expanded to one token per visual token."""
    system_tokens: int = 0
    """Tokens of the system turn, which begins the prompt; a turn that the chat template adds by itself counts."""
    question_positions: tuple[int, ...] = ()
    """Tokens of the question's text, in order; media inside it, and the markers around them, are left out."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to generate. `temperature=0` is greedy. `seed` makes a completion a function of prompt, index and weights.

    Example: `Sampling(completions=8, temperature=1.0, max_new_tokens=64, seed=7)`
    """

    completions: int
    temperature: float
    max_new_tokens: int
    seed: int
    top_tokens: int = 0
    """Most likely tokens to report per position, the sampled one among them; 0: the sampled one's log-prob alone."""


Switches = tuple[tuple[int, int], ...]
"""Where weights changed while a response was made: (first token, weight version) of every part but the first."""


class FinishReason(enum.StrEnum):
    """Why generation ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response, with the rollout policy mu's log-probabilities of its own tokens.

    Example: `Completion(prompt_id="train/17", index=3, token_ids=(7, 21, 2), log_probs=(-0.1, -1.2, -0.01),
    text="<answer> red </answer>", finish_reason=FinishReason.STOP, weight_version=12)`
    """

    prompt_id: str
    index: int
    """0 … completions-1 within the prompt's group."""
    token_ids: tuple[int, ...]
    """[R] including the end-of-turn token when `finish_reason` is stop."""
    log_probs: tuple[float, ...]
    """[R] natural log, of the distribution sampled from: temperature applied, banned tokens removed."""
    text: str
    finish_reason: FinishReason
    weight_version: int
    """Weights that made it, or its first tokens."""
    top: TokenRecord | None = None
    """mu's most likely tokens at every position, when `Sampling.top_tokens` asks for them."""
    switches: Switches = ()
    """With `rollout.on_new_weights=continue`: where other weights took over."""
    restarts: int = 0
    """With `rollout.on_new_weights=discard`: how often it was begun again, in the engine's queue or out of it."""
    seed: int = 0
    """Of its own randomness: with the weights, what is needed to make it again."""

    @property
    def id(self) -> str:
        """Unique within a step: `<prompt id>#<index>`."""
        return f"{self.prompt_id}#{self.index}"


Completions = Generator[Completion, None, None]
"""A generation under way: yields what is finished. Closed by whoever stops listening: an engine in the same process is
then free, an actor's goes on to its end."""


class RewardStatus(enum.StrEnum):
    """Whether a verdict was reached. Only `ok` rewards enter the advantage."""

    OK = "ok"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class RewardResult:
    """The verdict on one completion.

    Example: `RewardResult(completion_id="train/17#3", parts={"correctness": 1.0, "format": 1.0}, total=1.0,
    status=RewardStatus.OK)`
    """

    completion_id: str
    parts: Mapping[str, float]
    """Unweighted parts, each in [0, 1] (`visual` in the form `ratio` is not); and `penalty`, taken off as it is."""
    total: float
    """Weighted sum of the parts; 0 unless `status` is ok."""
    status: RewardStatus
    detail: str = ""
    """The reason, when `status` is not ok."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a learner or scorer consumes: a sequence, the rollout's log-probs, and its advantage.

    A demonstration (supervised stages) has no rollout log-probs and advantage 0.
    Example: `Sample(id="train/17#3", prompt=Prompt(…), response_token_ids=(7, 21, 2),
    rollout_log_probs=(-0.1, -1.2, -0.01), advantage=0.87, weight_version=12)`
    """

    id: str
    prompt: Prompt
    response_token_ids: tuple[int, ...]
    """[R]"""
    rollout_log_probs: tuple[float, ...] = ()
    """[R] or empty."""
    advantage: float = 0.0
    weight_version: int = 0
    """Weights that made it, or its first tokens."""
    rollout_top: TokenRecord | None = None
    """The rollout's most likely tokens at every position, when the policy loss reads them."""
    switches: Switches = ()
    """Where other weights took over."""

    @classmethod
    def of(cls, prompt: Prompt, completion: Completion, advantage: float = 0.0) -> Sample:
        """A rollout as learners see it; frozen policies read it before it is judged."""
        return cls(
            id=completion.id,
            prompt=prompt,
            response_token_ids=completion.token_ids,
            rollout_log_probs=completion.log_probs,
            advantage=advantage,
            weight_version=completion.weight_version,
            rollout_top=completion.top,
            switches=completion.switches,
        )

    @property
    def length(self) -> int:
        """T, in tokens."""
        return len(self.prompt.token_ids) + len(self.response_token_ids)

    @property
    def weight_versions(self) -> tuple[int, ...]:
        """All that made it, in the order of its tokens."""
        return (self.weight_version, *(version for _, version in self.switches))

    def token_versions(self) -> np.ndarray:
        """int64 [R], the weights that made each response token."""
        versions = np.full(len(self.response_token_ids), self.weight_version)
        for first, version in self.switches:
            versions[first:] = version
        return versions


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion with its verdict and advantage: the controller's unit of account."""

    prompt: Prompt
    completion: Completion
    reward: RewardResult
    advantage: float

    def sample(self) -> Sample:
        """The learner's view of this rollout."""
        return Sample.of(self.prompt, self.completion, self.advantage)


@dataclass(frozen=True, slots=True)
class Counts:
    """Global denominators of one optimiser update, fixed before its first backward.

    Example: two sequences of 3 and 5 response tokens over all ranks: `Counts(tokens=8, sequences=2)`
    """

    tokens: int
    sequences: int


MicroBatch = tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """One optimiser update: `shards[rank][i]` is that rank's i-th micro-batch. All ranks have equally many.

    Example: one micro-batch on each of two ranks: `UpdatePlan(shards=(((a,),), ((b,),)), counts=Counts(8, 2))`
    """

    shards: tuple[tuple[MicroBatch, ...], ...]
    counts: Counts


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """The K updates of one rollout batch. A sample stays on one rank in all of them, where its old scores are."""

    updates: tuple[UpdatePlan, ...]

    def rank_samples(self, rank: int) -> tuple[MicroBatch, ...]:
        """Every micro-batch that `rank` trains on, in order, for scoring them once beforehand."""
        return tuple(micro for update in self.updates for micro in update.shards[rank])

    def versions_by_micro_batch(self) -> tuple[frozenset[int], ...]:
        """Of every micro-batch of `rank_samples`, the weights that made its tokens, on any rank."""
        together = zip(*(self.rank_samples(rank) for rank in range(len(self.updates[0].shards))), strict=True)
        return tuple(frozenset(v for micro in ranks for s in micro for v in s.weight_versions) for ranks in together)

    def with_advantages(self, advantages: Mapping[str, float]) -> TrainPlan:
        """The same plan of judged samples; `advantages` holds every sample's id."""

        def judged(micro: MicroBatch) -> MicroBatch:
            return tuple(replace(sample, advantage=advantages[sample.id]) for sample in micro)

        return TrainPlan(
            tuple(
                replace(update, shards=tuple(tuple(judged(micro) for micro in shard) for shard in update.shards))
                for update in self.updates
            )
        )


@dataclass(frozen=True, slots=True)
class AttentionRecord:
    """A frozen policy's attention rows of one sample and layer, at one weight version. Dies with its batch.

    Example (R = 2, T = 5, the two largest entries of each row): `AttentionRecord(version=12, tokens=5,
    values=array([[0.7, 0.2], [0.5, 0.3]]), indices=array([[0, 3], [4, 1]]), tail=array([0.1, 0.2]))`
    """

    version: int
    """Weights that made it; for a model that is not the learner, the weights of the rollout that it read."""
    tokens: int
    """T, the length of the key axis."""
    values: np.ndarray
    """[R, T] or, with `indices`, [R, K]; float32, or uint16 that hold bfloat16 bits. With each head: [H, R, …]."""
    indices: np.ndarray | None = None
    """int32 [R, K], the keys of `values`."""
    tail: np.ndarray | None = None
    """float32 [R], the mass on all other keys."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(a.nbytes for a in (self.values, self.indices, self.tail) if a is not None)


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A frozen policy's next-token distributions at one sample's response tokens. Dies with its batch.

    Example (R = 2, of 211 tokens the two most likely, and all others):
    `TokenRecord(log_probs=array([[-0.1, -2.6, -4.0], [-0.7, -0.8, -3.2]]), ids=array([[7, 21], [3, 2]]))`
    """

    log_probs: np.ndarray
    """float32 [R, V] or, with `ids`, [R, K + 1]: the last is that of all other tokens together."""
    ids: np.ndarray | None = None
    """int32 [R, K], the tokens of `log_probs`."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.log_probs.nbytes + (0 if self.ids is None else self.ids.nbytes)


@dataclass(frozen=True, slots=True)
class SampleScores:
    """A frozen policy's view of one sample: old, reference or teacher.

    Example (R = 2): `SampleScores(log_probs=array([-0.1, -1.2]), attention=(AttentionRecord(…),),
    row_statistics={"visual_mass": array([0.31, 0.28]), …})`
    """

    log_probs: np.ndarray
    """float32 [R]"""
    attention: tuple[AttentionRecord, ...] = ()
    """One record per probed layer; empty when not asked for."""
    row_statistics: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the last probed layer's rows look at (`attention.metrics`); float32, one figure per attention row."""
    tokens: TokenRecord | None = None
    """A teacher's distributions over the vocabulary."""
    visual_reward: float | None = None
    """How much the response looks at pictures (`attention.visual_reward`); None where undefined or not asked for."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        records = (*self.attention, *((self.tokens,) if self.tokens else ()))
        arrays = (self.log_probs, *self.row_statistics.values())
        return sum(record.nbytes for record in records) + sum(array.nbytes for array in arrays)


Scores = dict[str, SampleScores]
"""Sample id → scores. Held by one rank, handed over by reference, dropped with its batch."""


@dataclass(frozen=True, slots=True)
class VisualAttention:
    """Attention mass on each visual token of a sample's media, mean over the rows of its answer.

    Example (one picture of 2 × 2 visual tokens, half of all attention on it):
    `VisualAttention((array([[[0.4, 0.1], [0.0, 0.0]]]),))`
    """

    maps: tuple[np.ndarray, ...]
    """Of each image, then of each video: float32 [frames, grid height, grid width], shares of the rows' attention."""


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """Identity of one published tensor."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """What a weight version consists of: Hugging Face parameter name → digest.

    Example: `WeightManifest(version=3, tensors={"lm_head.weight": TensorDigest((211, 128), "float32", "ab12…")})`
    """

    version: int
    tensors: Mapping[str, TensorDigest]


@dataclass(frozen=True, slots=True)
class Weights:
    """One published weight version: the manifest and the host arrays it describes."""

    manifest: WeightManifest
    arrays: Mapping[str, np.ndarray] = field(repr=False)
