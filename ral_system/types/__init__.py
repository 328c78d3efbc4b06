"""The values that cross a process. Frozen, slotted, made of plain Python and numpy: nothing here imports torch.

Token positions: a sequence is `prompt.token_ids + response token_ids`; P prompt tokens, R response tokens, T = P + R.
"""

from ral_system.types.evidence import Box, Region
from ral_system.types.held import Held, Holding
from ral_system.types.media import MARKS, MAX_MEDIA, Clip, Layout, Media, MediaKind, VideoSampling, View
from ral_system.types.plan import Counts, MicroBatch, TrainPlan, UpdatePlan
from ral_system.types.prompt import Piece, Prompt, Sampling, Split
from ral_system.types.records import AttentionRecord, SampleScores, Scores, TokenRecord, VisualAttention
from ral_system.types.rollout import (
    Completion,
    Completions,
    FinishReason,
    RewardResult,
    RewardStatus,
    Switches,
    Verdict,
)
from ral_system.types.sample import Credit, Rollout, Sample
from ral_system.types.weights import UNREAD, EngineNames, TensorDigest, WeightManifest

__all__ = [
    "MARKS",
    "MAX_MEDIA",
    "UNREAD",
    "AttentionRecord",
    "Box",
    "Clip",
    "Completion",
    "Completions",
    "Counts",
    "Credit",
    "EngineNames",
    "FinishReason",
    "Held",
    "Holding",
    "Layout",
    "Media",
    "MediaKind",
    "MicroBatch",
    "Piece",
    "Prompt",
    "Region",
    "RewardResult",
    "RewardStatus",
    "Rollout",
    "Sample",
    "SampleScores",
    "Sampling",
    "Scores",
    "Split",
    "Switches",
    "TensorDigest",
    "TokenRecord",
    "TrainPlan",
    "UpdatePlan",
    "Verdict",
    "VideoSampling",
    "View",
    "VisualAttention",
    "WeightManifest",
]
