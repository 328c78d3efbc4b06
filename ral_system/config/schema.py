"""The typed configuration: what every field means, its unit and its legal range. Defaults live in `conf/*.yaml` only.

One class per Hydra group, in the order of `conf/config.yaml`. Frozen; unknown keys are refused. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OneOrMore = BeforeValidator(lambda given: given if isinstance(given, list | tuple) else (given,))
"""Of a tuple's field: a single value is a tuple of one."""

ResponseFormat = Literal["think_answer", "answer_only"]
Stage = Literal["perceive", "sft", "rl"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""In the order in which a run goes through them."""
Divergence = Literal["jsd", "forward_kl", "reverse_kl", "tv", "hellinger"]
Rows = Literal["generated", "predicting", "answer", "instruction"]
Keys = Literal["all", "visual", "prompt", "no_sinks"]
Dtype = Literal["float32", "bfloat16"]
Reduction = Literal["token_mean", "sequence_mean", "sequence_sum"]
VisualRewardForm = Literal["share", "ratio"]


class Group(BaseModel):
    """Base of every group: immutable, no extra keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TinyModelConfig(Group):
    """Architecture of the model that is built from nothing when `model.path` is null."""

    hidden: Positive
    layers: Positive
    vision_layers: Positive


class ModelConfig(Group):
    """Which model is trained."""

    path: str | None
    """Folder or hub name in Hugging Face format; null builds `tiny`."""
    tiny: TinyModelConfig
    freeze_vision: bool
    """Keep the vision encoder and projector fixed."""


class VisualSearchConfig(Group):
    """Visual search: generated mosaics and questions."""

    name: Literal["visual_search"]
    seed: NonNegative
    """Seed of the generated pictures and questions; apart from the run's seed, so that runs can share the data."""
    grid: Annotated[tuple[Annotated[int, Field(ge=2, le=8)], ...], Field(min_length=1), OneOrMore]
    """Cells per side; grid² visual tokens. Of `[2, 4, 8]` records take turns: one of each question kind, then the next
    size."""
    objects: Annotated[int, Field(ge=2)]
    """Filled cells: the target and objects - 1 distractors; all cells of a board with fewer."""
    train_records: Positive
    """Training pictures and questions; every stage goes through them again when they run out."""
    described: Positive
    """Positions that a demonstration of the perceive stage describes at most: of large boards not all."""
    search_from: NonNegative
    """Demonstrations of the perceive stage that describe only; the later ones also say where each thing stands."""
    digits: bool
    """Mix real handwritten digits with the drawn shapes."""
    glance_share: Annotated[float, Field(ge=0, le=1)]
    """Share of the think-and-answer demonstrations that look nothing up, and guess where several cells matter."""
    system_prompt: str
    """Empty: no system turn."""
    demonstrations: str | None
    """demonstrations.jsonl of `ral-synthesize`, which sft then imitates, in turn, whatever `glance_share`; null: the
    generated thoughts."""


class VideoSearchConfig(Group):
    """Video search: generated videos that show another coloured thing every second; questions ask when and what."""

    FRAMES_PER_S: ClassVar[int] = 4
    """All alike within a second."""

    name: Literal["video_search"]
    seed: NonNegative
    seconds: Annotated[tuple[Annotated[int, Field(ge=2, le=8)], ...], Field(min_length=1), OneOrMore]
    """Of a video, with four frames each, called a to h. Several take turns: one of each question kind, then the next
    length."""
    max_frames: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1), OneOrMore]
    """That a model sees, evenly spaced; below 2 · seconds some seconds are missed, or share a patch. Several take
    turns: all of `seconds` with one, then with the next."""
    described: Positive
    """Seconds that a demonstration of the perceive stage describes at most, and things that it looks for."""
    train_records: Positive
    """Training videos and questions; every stage goes through them again when they run out."""
    system_prompt: str
    """Empty: no system turn."""


class ColumnsConfig(Group):
    """Names of a file's columns; dotted names reach into nested ones (`reward_model.ground_truth`,
    `prompt.0.content`). null: there is none. One of `images` and `videos`, if any is named, must be in some row."""

    question: str
    """Text, or chat turns of {role, content}, of which the only user turn is the question and a system turn is left to
    `data.system_prompt`. May say where media stand, by <image> and <video>; without such marks they come before the
    text."""
    answer: str
    """With or without <answer> tags around it."""
    thought: str | None
    """What sft imitates before the answer, with or without <think> tags around it."""
    options: str | None
    """A list of texts or numbers that follow the question, one per line."""
    images: str | None
    """A path, bytes, {bytes, path} as Hugging Face's datasets store pictures, or a list of these."""
    videos: str | None
    """The same, of videos."""
    media_type: str | None
    """Says image or video, where one column (given as `images`) holds either. null: where that column is given as
    `videos`, too, the files themselves say it."""
    kind: str | None
    """Question kind, for tables, `data.instructions` and `reward.kinds`."""
    id: str | None
    """Only repeated in quarantine.jsonl; rows are named by source and number."""


class SourceConfig(Group):
    """One file of questions, several in a folder, or a dataset of the Hugging Face hub."""

    path: str
    """A .json, .jsonl, .parquet or .arrow file, a folder, or `org/name` on the hub, which is downloaded once."""
    files: str | None
    """Which files of a folder or dataset: `data/train-*.parquet`; null: the Arrow files of a dataset saved to disk."""
    media_files: str | None
    """Which files of a dataset on the hub are its pictures and videos, fetched with `files`: `images/*`."""
    revision: str | None
    """Branch, tag or commit of a dataset on the hub; null: main, as it is when a run starts."""
    root: str | None
    """Folder that paths of media start from and may not leave; null: that of `path`, or `path` if it is one."""
    weight: PositiveFloat
    """How often each row is seen while a row of weight 1 is seen once."""
    split: Literal["both", "train", "held_out"]
    """What its rows are for; both: `data.held_out` of them, chosen by content, are held out."""
    columns: ColumnsConfig

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, given: Any) -> Any:
        """An experiment's path outlives the columns of the source that it belongs to, with another data=."""
        if isinstance(given, Mapping) and "path" in given and "columns" not in given:
            raise PydanticCustomError("half_a_source", "a path and no columns")
        return given


class ImageConfig(Group):
    """Pixels of a picture as models see it; smaller ones are enlarged, larger ones reduced. null: what the model's own
    processor allows."""

    min_pixels: Positive | None
    max_pixels: Positive | None


class VideoConfig(Group):
    """What of a video models see. The paper: 1 frame a second, at most 128, of at most 128·28·28 pixels."""

    fps: PositiveFloat
    """Frames a second."""
    max_frames: Annotated[int, Field(ge=2)]
    """Of a longer video fewer frames a second."""
    min_frames: Positive
    """Of a shorter video more, as far as it has them."""
    min_pixels: Positive
    """Of a frame; smaller ones are enlarged."""
    max_pixels: Positive


class FilesConfig(Group):
    """Questions from files, with pictures and videos."""

    name: Literal["files"]
    seed: NonNegative
    """Of the order of the rows and of what is held out; apart from the run's seed."""
    sources: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], SourceConfig]
    """By names of your choice, which rows are then called by: main/17."""
    system_prompt: str
    """Empty: no system turn."""
    instructions: dict[str, str]
    """By question kind, what is added to a question on a line of its own; `default` to all other kinds. Case does not
    matter."""
    held_out: Fraction
    """Share of the rows of sources with split=both."""
    image: ImageConfig
    video: VideoConfig
    max_broken: Fraction
    """End the preparation when more than this share of the rows cannot be used, from the hundredth row on."""
    workers: Positive
    """Processes that decode."""
    timeout_s: PositiveFloat
    """For decoding one row's media."""


DataConfig = Annotated[VisualSearchConfig | VideoSearchConfig | FilesConfig, Field(discriminator="name")]


class KLConfig(Group):
    """Penalty towards the frozen reference policy."""

    coefficient: NonNegativeFloat
    """beta, on the mean over tokens whatever `reduction`; 0 starts no reference scorer unless something else needs
    it.
    """
    estimator: Literal["k1", "k2", "k3"]
    """Of KL(pi ‖ reference) from the sampled tokens (Schulman): k1 has no gradient on average, k2 has KL's own, k3 is
    never negative and the usual choice."""
    place: Literal["loss", "reward"]
    """Add it to the loss, or take each response's sum, at the rollout's weights, off its reward."""


class AttentionConfig(Group):
    """The attention policy and its loss (RAL, Eq 2-4)."""

    weight: NonNegativeFloat
    """lambda_attn; 0 is plain GRPO."""
    anchor: Literal["old", "reference", "ema"]
    """Whose rows the policy's are compared with: the policy's own at the rollout's weights (the paper), the frozen
    reference's, or those of a moving average of the trained weights."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Share of the average that an optimiser update leaves, with anchor=ema."""
    divergence: Divergence
    """Of the policy to the anchor (the paper: jsd); forward_kl is KL(anchor ‖ policy)."""
    layers: Literal["last", "all"] | Annotated[tuple[int, ...], Field(min_length=1)]
    """Decoder layers whose attention is read, by index (negative from the end); the loss is their mean."""
    heads: Literal["mean", "each"]
    """One policy from the mean over heads (the paper), or one per head, whose divergences are averaged."""
    rows: Rows
    """Rows of the policy: those whose input is a generated token (the paper), those that chose one, those inside the
    answer (all of a response that has none), or those of the question's text."""
    keys: Keys
    """Keys that count: all earlier ones (the paper), visual tokens, the prompt's, or all but the first four tokens."""
    reduction: Reduction
    """E_t in Eq 3: mean over all rows of the update, mean over sequences of each one's mean, or of each one's sum (as
    Eq 5 writes it)."""
    gradient_share_every: NonNegative
    """Rollout batches between measurements of the attention term's share of the gradient at the probed layers' queries
    and keys (of all parameters' it is less); 0 never."""
    max_gradient_share: Annotated[float, Field(gt=0, lt=1)] | None
    """Scale the term down, update by update, to this share of the same where it is larger; costs one more forward pass
    per update. null never."""
    record: Literal["dense", "top_k"]
    """How the anchor's rows are kept: whole, or their largest entries and the mass of the rest (a lower bound)."""
    top_k: Positive
    """Entries kept per row with record=top_k."""
    record_dtype: Dtype
    """Precision of the entries; bfloat16 halves them and adds noise of about 6e-7 nats to a JSD."""
    backend: Literal["auto", "dense", "chunked", "triton"]
    """How divergences are computed; all agree. dense: memory heads · rows · tokens. chunked: linear in tokens. triton:
    the same, fast on CUDA devices. auto: triton on a CUDA device that has it, chunked elsewhere."""


class TokenDistillationConfig(Group):
    """Distillation of a teacher's next-token distributions on the student's own rollouts (L_GKD, Eq 7)."""

    weight: NonNegativeFloat
    """mu, on the mean over response tokens."""
    divergence: Literal["reverse_kl", "forward_kl", "jsd"]
    """Of the student to the teacher: KL(student ‖ teacher), KL(teacher ‖ student), or their generalised JSD."""
    jsd_beta: Annotated[float, Field(gt=0, lt=1)]
    """Teacher's share of the mixture, with divergence=jsd."""
    top_k: Positive | None
    """Tokens that the teacher sends per position, beside the mass of the rest (a lower bound); null: the vocabulary."""


class AttentionDistillationConfig(Group):
    """Distillation of a teacher's attention rows (L_AD, Eq 5-6): of the last layer, mean over heads, every row's weight
    the same whatever the advantage. Rows, keys and the record's form are those of `algorithm.attention`."""

    weight: NonNegativeFloat
    """gamma_attn."""
    divergence: Divergence
    """Of the student to the teacher (the paper: jsd)."""
    reduction: Reduction
    """The paper: sequence_sum."""


class DistillationConfig(Group):
    """Learning from a teacher on the student's own rollouts; 0 and 0 start none."""

    tokens: TokenDistillationConfig
    attention: AttentionDistillationConfig


class PolicyLossGroup(Group):
    """Base of the policy losses."""

    @property
    def top_tokens(self) -> int:
        """How many of its most likely tokens the rollout engine must report; 0: the sampled one alone."""
        return 0


class ClipLossConfig(PolicyLossGroup):
    """PPO and GRPO: a clipped ratio; clip-higher (DAPO); dual clip."""

    name: Literal["clip"]
    clip_low: Annotated[float, Field(gt=0, le=1)]
    """The ratio counts down to 1 - clip_low."""
    clip_high: PositiveFloat
    """And up to 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1)] | None
    """Where A < 0 the ratio counts up to this; null: without bound."""


class DppoLossConfig(PolicyLossGroup):
    """DPPO: tokens whose distribution has moved far enough are left out, whatever their ratio."""

    name: Literal["dppo"]
    divergence: Literal["binary_tv", "binary_kl", "top_k_tv", "top_k_kl"]
    """Of the rollout's distribution and the policy's: of the sampled token against all others, or of the rollout's most
    likely tokens, one by one."""
    delta: PositiveFloat
    """How far is far enough (the paper: 0.15 to 0.2 for tv, 0.05 nats for kl)."""
    top_k: Annotated[int, Field(ge=2, le=20)]
    """Tokens that the rollout engine reports per position, for top_k_tv and top_k_kl; vLLM gives up to 20."""
    anchor: Literal["rollout", "old"]
    """What the policy is compared with: the log-probs that the rollout engine reported (the paper), or those recomputed
    at the same weights, with which the paper's runs collapse."""
    max_ratio: PositiveFloat
    """Ratios above it weigh as much as it."""

    @property
    def top_tokens(self) -> int:
        """`top_k` where the divergence reads them."""
        return self.top_k if self.divergence.startswith("top_k") else 0


class GspoLossConfig(PolicyLossGroup):
    """GSPO: a clipped ratio per sequence."""

    name: Literal["gspo"]
    clip_low: Annotated[float, Field(gt=0, le=1)]
    clip_high: PositiveFloat


class CispoLossConfig(PolicyLossGroup):
    """CISPO: a clipped ratio that weighs the token's gradient and never stops it."""

    name: Literal["cispo"]
    clip_low: Annotated[float, Field(gt=0, le=1)]
    """1: no lower bound (the paper)."""
    clip_high: PositiveFloat


class SapoLossConfig(PolicyLossGroup):
    """SAPO: a soft gate in place of the clip."""

    name: Literal["sapo"]
    tau_positive: PositiveFloat
    """How fast the gate closes where A > 0."""
    tau_negative: PositiveFloat
    """And where A < 0."""


class ReinforceLossConfig(PolicyLossGroup):
    """REINFORCE."""

    name: Literal["reinforce"]
    ratio: bool
    """Weigh by pi / pi_old."""


PolicyLossConfig = Annotated[
    ClipLossConfig | DppoLossConfig | GspoLossConfig | CispoLossConfig | SapoLossConfig | ReinforceLossConfig,
    Field(discriminator="name"),
]


class CorrectionConfig(Group):
    """For what the rollout engine and the learner compute differently: tokens weighed by w = pi_old / mu."""

    kind: Literal["none", "truncate", "mask", "reject_sequence"]
    """truncate: min(w, high), truncated importance sampling. mask: w inside [low, high], else 0 (IcePop).
    reject_sequence: 0 for sequences whose geometric mean of w lies outside, else 1."""
    low: Annotated[float, Field(gt=0, le=1)]
    high: Annotated[float, Field(ge=1)]


class OverlongConfig(Group):
    """Responses that were cut, or nearly, at rollout.max_new_tokens or the end of rollout.max_model_len (DAPO,
    arXiv 2503.14476)."""

    handling: Literal["none", "mask", "penalty"]
    """mask: a response that was cut gets advantage 0. penalty: take up to 1 off the reward as it nears the limit."""
    buffer: Positive
    """Tokens before the limit over which the penalty grows."""


Advantage = Literal["grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "gdpo"]


class AlgorithmConfig(Group):
    """The training objective and the shape of one step."""

    name: str
    """Label in reports and run names."""
    response_format: ResponseFormat
    """`<think>…</think><answer>…</answer>`, or the answer alone (RAL-zero)."""
    steps: Positive
    """Rollout batches to train on."""
    prompts_per_step: Positive
    completions_per_prompt: Annotated[int, Field(ge=2)]
    """G, the group that a completion's reward is compared within."""
    sampling_rounds: Positive
    """Most rounds of rollouts per step. 1 trains on every group; more replace groups whose rewards are all alike by the
    next prompts' (dynamic sampling), and rewards no longer overlap with scoring."""
    max_staleness: NonNegative
    """Weight versions that a batch may lag behind those it trains. 0 generates and trains in turn; N generates up to N
    batches ahead while one trains. Learners keep N + 1 versions of their weights in host memory, to score a batch with
    those that made it; up to N published ones may wait for the engines."""
    overlong: OverlongConfig
    updates_per_step: Positive
    """K: optimiser updates per pass over a rollout batch, each on 1/K of it."""
    passes_per_step: Positive
    """Passes over each rollout batch (PPO's epochs): the same K updates in the same order. Old log-probs and attention
    stay those of the rollout's weights, so from the second pass on every sample is off policy."""
    policy_weight: NonNegativeFloat
    """On the policy loss; 0 learns from a teacher without rewards."""
    advantage: Advantage
    """How a completion's reward becomes its advantage."""
    policy_loss: PolicyLossConfig
    reduction: Literal["token_mean", "sequence_mean", "sequence_sum", "fixed_length"]
    """Of the policy loss over the update: the mean over its tokens, or over its sequences of each one's mean, sum, or
    sum divided by `fixed_length` (Dr. GRPO)."""
    fixed_length: Positive
    """What each sequence's sum is divided by with reduction=fixed_length."""
    correction: CorrectionConfig
    entropy_coefficient: NonNegativeFloat
    """Bonus on the mean entropy of the next-token distributions over all tokens, in nats."""
    kl: KLConfig
    attention: AttentionConfig
    distillation: DistillationConfig

    @property
    def updates_per_batch(self) -> int:
        """Optimiser updates on one rollout batch, over all its passes."""
        return self.updates_per_step * self.passes_per_step


class TeacherConfig(Group):
    """Whom `algorithm.distillation` learns from: models of any size with the student's tokenizer and visual grid."""

    path: str | None
    """Folder or hub name in Hugging Face format."""
    attention_path: str | None
    """Another teacher for the attention alone; null: the same."""
    dtype: Dtype
    micro_batch: Positive
    """Sequences per forward pass."""


@dataclass(frozen=True, slots=True)
class TeacherRole:
    """One model that teaches, and what."""

    path: str
    tokens: bool
    attention: bool


class VisualRewardConfig(Group):
    """Visual-anchored reward (AVAR 2.4): right answers are worth more the more their words look at the picture."""

    weight: NonNegativeFloat
    """The paper: 0.3; 0 measures nothing."""
    form: VisualRewardForm
    """share: of the attention on picture and system turn, the picture's, in [0, 1]. ratio: the one over the other, as
    the paper writes it; it has no bound and can outweigh correctness."""
    model: Literal["policy", "reference"]
    """Whose attention: the policy's at the rollout's weights, or the frozen reference's on the same words."""


Verifier = Literal[
    "exact",
    "multiple_choice",
    "numeric",
    "mathematics",
    "ocr",
    "free_form",
    "regression",
    "box",
    "interval",
    "function",
]


class ToleranceConfig(Group):
    """How far a number may be off, for verifier=numeric: absolute + relative · |reference|."""

    absolute: NonNegativeFloat
    relative: NonNegativeFloat


class RewardConfig(Group):
    """Weighted sum of the reward parts, each in [0, 1] (visual.form=ratio is not)."""

    verifier: Verifier
    """What judges the answer: a file of `ral_system/rewards/verifiers`."""
    kinds: dict[str, Verifier]
    """By question kind, what judges it in place of `verifier`; case does not matter."""
    function: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] | None
    """For the verifier `function`: `module:name` of one (given, reference) → [0, 1], importable where rewards run."""
    tolerance: ToleranceConfig
    correctness: NonNegativeFloat
    format: NonNegativeFloat
    visual: VisualRewardConfig
    workers: Positive
    """Verifier subprocesses per reward actor."""
    timeout_s: PositiveFloat
    """Deadline per completion."""
    memory_gib: PositiveFloat
    """Address space of a verifier process; an answer that makes it ask for more is not judged."""

    def of_kind(self, kind: str) -> RewardConfig:
        """The same with the verifier of a question kind, whatever its case."""
        by_kind = {name.strip().lower(): verifier for name, verifier in self.kinds.items()}
        return self.model_copy(update={"verifier": by_kind.get(kind.strip().lower(), self.verifier)})

    @property
    def weights(self) -> dict[str, float]:
        """Of the reward parts, by their names in `RewardResult.parts`."""
        return {"correctness": self.correctness, "format": self.format, "visual": self.visual.weight}


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


OnNewWeights = Literal["finish", "continue", "discard"]


class RolloutConfig(Group):
    """Generation."""

    engine: Literal["vllm", "hf"]
    workers: Positive
    """Engines; prompts are dealt to them in turn."""
    temperature: PositiveFloat
    max_new_tokens: Positive
    stop_at_answer: bool
    """End a response at `</answer>`, whatever the model would still say."""
    max_model_len: Positive
    """Prompt and response together, in tokens, visual tokens included."""
    max_sequences: Positive
    """Sequences an engine decodes at once."""
    dtype: Dtype
    tensor_parallel: Positive
    """Ranks of one engine, all on one node."""
    memory_gib: PositiveFloat | None
    """Key-value cache on CPU engines."""
    gpu_memory_utilization: Fraction
    weight_transfer: str
    """How weights travel from learners to engines. object_store: as arrays in Ray's object store, or in memory. files:
    in a file of the run's folder, which learners and engines must share. Packages can add others."""
    on_new_weights: OnNewWeights
    """What becomes of responses under way when new weights are ready, with `algorithm.max_staleness` > 0. finish:
    weights change between two batches only. continue: at once; the response goes on from its last token with the new
    ones. discard: at once; the response is begun again."""
    log_prob_gate: LogProbGateConfig

    def response_limit(self, prompt_tokens: int) -> int:
        """Tokens at which a response to a prompt of this length is cut: `max_new_tokens`, or the room that is left."""
        return min(self.max_new_tokens, self.max_model_len - prompt_tokens)


class LearnerConfig(Group):
    """The trained policy's engine."""

    engine: Literal["deepspeed", "torch"]
    world_size: Positive
    micro_batch: Positive
    """Sequences per forward-backward on one rank."""
    zero_stage: Literal[0, 1, 2, 3]
    dtype: Dtype
    gradient_checkpointing: bool
    learning_rate: NonNegativeFloat
    betas: tuple[Fraction, Fraction]
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    warmup_updates: NonNegative
    """Optimiser updates over which the learning rate rises linearly."""


class AttentionGuidanceConfig(Group):
    """Attention-guided objective (AVAR 2.3): the question's tokens look more at pictures, less at the system turn."""

    image: NonNegativeFloat
    """a on L_enh (the paper: 0.15); 0 and 0 leave attention unread."""
    system: NonNegativeFloat
    """b on L_sup (the paper: 0.15)."""

    @property
    def active(self) -> bool:
        """Whether it adds to the loss."""
        return self.image > 0 or self.system > 0


class SupervisedConfig(Group):
    """One supervised stage (perceive or sft)."""

    max_steps: Positive
    batch: Positive
    """Demonstrations per optimiser update, over all ranks."""
    learning_rate: PositiveFloat
    betas: tuple[Fraction, Fraction]
    weight_decay: NonNegativeFloat
    warmup_updates: NonNegative
    evaluate_every: Positive
    """Steps between held-out evaluations."""
    evaluate_from: NonNegative
    """First step that is evaluated."""
    stop_at: Fraction
    """Held-out score at which the stage ends."""
    attention_guidance: AttentionGuidanceConfig


PLACEHOLDER = re.compile(r"\{(question|description|reasoning)\}")


class SynthesisRoleConfig(Group):
    """Who plays one role of `ral-synthesize`: a model behind an OpenAI-compatible server, or the offline templates."""

    endpoint: str | None
    """Its address, for example http://127.0.0.1:8000/v1; null: the templates."""
    model: str | None
    """The model's name at the endpoint."""
    api_key_env: str | None
    """Name of the environment variable that holds the key; null: the server wants none."""
    instruction: str
    """What is asked; {question}, {description} and {reasoning} are filled in where they are known."""
    picture: bool
    """Send the picture, too."""
    temperature: NonNegativeFloat
    max_tokens: Positive
    requests_per_minute: PositiveFloat | None
    """null: as fast as `concurrency` allows."""


class SynthesisConfig(Group):
    """Visual-anchored demonstrations (AVAR 2.5): describe the picture, reason over the words, anchor the reasoning."""

    rows: Positive
    """Training questions that get a demonstration, from the first on."""
    concurrency: Positive
    """Rows in work at once."""
    attempts: Positive
    """Completions per role and row before the row is rejected."""
    retries: NonNegative
    """Further tries of a request that failed or timed out."""
    timeout_s: PositiveFloat
    """Of one request."""
    anchor: str
    """Regular expression of an anchor, in whatever case; a demonstration has one more than its reasoning had."""
    max_rejected: Fraction
    """End when more than this share of the rows is rejected, from the twentieth on."""
    describer: SynthesisRoleConfig
    reasoner: SynthesisRoleConfig
    anchorer: SynthesisRoleConfig


BENCHMARK_NAMES = (
    *("vstar", "mme", "chartqa", "mmmu_pro", "muirbench", "vizwiz", "blink", "cvbench", "longvideobench", "nextqa"),
    *("video_mme", "video_mmmu", "lvbench", "mvbench", "tempcompass"),
)


class BenchmarkConfig(Group):
    """What `ral-evaluate` asks in place of the held-out questions of `data`, with data=files: its pictures and frames
    are sized, and its system turn worded, as `data` says."""

    name: str | None
    """One of `BENCHMARK_NAMES`; null: none."""
    folder: str | None
    """Of its files, as they were released."""
    limit: Positive | None
    """Only so many of its questions, as many of every category as far as there are, and one more to have both of a
    pair."""


class EvaluationConfig(Group):
    """Held-out evaluation: greedy, all question kinds."""

    questions: Positive
    """Before and after RL."""
    stage_questions: Positive
    """At the evaluations inside a supervised stage."""
    every: NonNegative
    """RL steps between evaluations; 0 evaluates only before and after."""
    every_questions: Positive
    """At the evaluations inside RL."""
    attention_questions: NonNegative
    """Questions whose visual attention score `ral-evaluate` measures; 0 none."""
    samples: Positive
    """Answers per question in `ral-evaluate`: 1 greedy, more at rollout.temperature, and scores are their mean."""
    benchmark: BenchmarkConfig


class InterventionConfig(Group):
    """Steering where a model looks in `ral-evaluate`, without training it (AVAR 2.2); compared with the plain model."""

    image: NonNegativeFloat
    """How much more attention goes to visual tokens (the paper: 0.15)."""
    system: Annotated[float, Field(ge=0, lt=1)]
    """How much less goes to the system turn (the paper: 0 to 0.6)."""
    space: Literal["weights", "logits"]
    """What is changed: attention weights, each row renormalised, or the logits, literally."""
    layers: Literal["all"] | Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    heads: Literal["all"] | Annotated[tuple[NonNegative, ...], Field(min_length=1)]

    @property
    def active(self) -> bool:
        """Whether it steers at all."""
        return self.image > 0 or self.system > 0


SweepAxis = Literal["visual_tokens", "frames"]


class SweepConfig(Group):
    """`ral-evaluate` at several sizes of the media, for several models: how much each gains from seeing more."""

    axis: SweepAxis | None
    """visual_tokens: at most so many of a picture; of visual search the cells of its board, a square number, with
    `data.objects` of them filled as far as they fit. frames: at most so many of a video."""
    values: tuple[Positive, ...]
    models: dict[str, str]
    """Folders by the names that the table and the chart show; none: start_model alone."""


class CheckpointConfig(Group):
    """What is saved and when."""

    every: Positive
    """RL steps between checkpoints."""
    supervised_every: Positive
    """Steps between checkpoints in the supervised stages, whose steps are short."""
    keep: Positive
    """Newest complete checkpoints kept per stage."""


class ClusterConfig(Group):
    """Where the roles run."""

    kind: Literal["ray", "local"]
    """`local` is one process without Ray, vLLM or DeepSpeed."""
    address: str | None
    """Ray address; null joins the cluster of the submitted job, or starts one on loopback."""
    cpus_per_rollout: NonNegativeFloat
    cpus_per_learner: NonNegativeFloat
    cpus_per_scorer: NonNegativeFloat
    cpus_per_teacher: NonNegativeFloat
    cpus_per_reward: NonNegativeFloat
    gpus_per_rollout: NonNegativeFloat
    gpus_per_learner: NonNegativeFloat
    gpus_per_scorer: NonNegativeFloat
    gpus_per_teacher: NonNegativeFloat
    media_cache_gib: NonNegativeFloat
    """Disk of each node's temporary folder for decoded pictures and frames, which its processes share."""
    threads_per_process: Positive
    """OpenMP threads of each engine process on CPU."""
    start_timeout_s: PositiveFloat
    """Bound on waiting for nodes and resources; on each node finding the models; and on starting every actor."""
    call_timeout_s: PositiveFloat
    """Bound on any one call to an actor."""


class LoggingConfig(Group):
    """Where metrics go besides `metrics.jsonl`."""

    wandb: Literal["auto", "online", "offline", "disabled"]
    """auto: online where W&B finds a login, offline elsewhere. W&B's own settings (WANDB_MODE, WANDB_DISABLED, `wandb
    offline`) count too, and of all of them the one that uploads less: WANDB_MODE=offline keeps online runs offline."""
    wandb_project: str
    """WANDB_PROJECT takes its place, as WANDB_NAME does for the run's name and WANDB_DIR for its folder."""
    groups_per_step: NonNegative
    """Prompts per step whose rollouts, the whole group, are kept with text in `rollouts.jsonl`; 0 keeps none,
    `${algorithm.prompts_per_step}` all."""
    report_every: Positive
    """RL steps between rewrites of `report.html`."""
    preview_rows: Positive
    """Training rows on the page of `ral-data`, as many that were left out, and a third as many held-out ones."""
    attention_entropy_alarm: Fraction
    """Raise an alarm when the attention rows' mean entropy falls below this share of the first step's; 0 never."""


def _in_order(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    return tuple(stage for stage in STAGES if stage in stages)


class RunConfig(Group):
    """The whole configuration of one run."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
    """Folder under `runs_dir`."""
    runs_dir: str
    seed: NonNegative
    resume: Literal["auto", "never"]
    """auto continues from the newest complete checkpoint; never refuses a folder that has one."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1), AfterValidator(_in_order)]
    """What `ral-train` runs; sorted into the order perceive, sft, rl."""
    start_model: str | None
    """Folder to start the first requested stage from, instead of the preceding stage's result in this run."""
    model: ModelConfig
    data: DataConfig
    algorithm: AlgorithmConfig
    teacher: TeacherConfig
    reward: RewardConfig
    rollout: RolloutConfig
    learner: LearnerConfig
    perceive: SupervisedConfig
    sft: SupervisedConfig
    synthesis: SynthesisConfig
    evaluation: EvaluationConfig
    intervention: InterventionConfig
    sweep: SweepConfig
    checkpoint: CheckpointConfig
    cluster: ClusterConfig
    logging: LoggingConfig

    @property
    def rollout_top_tokens(self) -> int:
        """How many of its most likely tokens the rollout engine returns per position; 0: the sampled one alone."""
        return self.algorithm.policy_loss.top_tokens

    @property
    def needs_reference(self) -> bool:
        """Whether the rl stage reads the frozen reference policy: its log-probs, its attention, or where it looks."""
        attention = self.algorithm.attention
        return (
            self.algorithm.kl.coefficient > 0
            or (attention.weight > 0 and attention.anchor == "reference")
            or self.visual_reward_by("reference")
        )

    def visual_reward_by(self, model: Literal["policy", "reference"]) -> bool:
        """Whether the visual-anchored reward is read from this model's attention."""
        return self.reward.visual.weight > 0 and self.reward.visual.model == model

    @property
    def teachers(self) -> tuple[TeacherRole, ...]:
        """The teachers of the rl stage: none, one for both things it can teach, or one for each."""
        teaching = self.algorithm.distillation
        for_tokens = self.teacher.path if teaching.tokens.weight > 0 else None
        for_attention = (self.teacher.attention_path or self.teacher.path) if teaching.attention.weight > 0 else None
        paths = dict.fromkeys(path for path in (for_tokens, for_attention) if path is not None)
        return tuple(TeacherRole(path, path == for_tokens, path == for_attention) for path in paths)
