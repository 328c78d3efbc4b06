"""The reference policy: log-probs, and on request attention, of the frozen start model."""

from __future__ import annotations

from pathlib import Path

from ral_system.attention.read import AttentionRead, response_at_all_layers
from ral_system.batches.collate import TensorBatch
from ral_system.config.attention import AttentionConfig
from ral_system.config.choices import Dtype
from ral_system.config.reward import VisualRewardConfig
from ral_system.media.store import MediaStore
from ral_system.scoring.frozen import FrozenScorer
from ral_system.scoring.scores import to_scores
from ral_system.types import MicroBatch, Scores


class ReferenceScorer(FrozenScorer):
    """Token log-probs under the rollout's sampling distribution.

    With anchor=reference also attention rows, with reward.visual.model=reference also how much a response looks at
    pictures.
    """

    def __init__(
        self,
        attention: AttentionConfig,
        visual: VisualRewardConfig,
        model_folder: Path,
        media: MediaStore,
        *,
        dtype: Dtype,
        temperature: float,
        max_tokens: int,
        gpus: int = 1,
    ) -> None:
        read = AttentionRead.of(attention)
        super().__init__(
            model_folder, media, read, dtype=dtype, temperature=temperature, max_tokens=max_tokens, gpus=gpus
        )
        self._attention, self._visual = attention, visual
        self._read, self._response = reference_reads(attention, visual)

    def _pass(self, batch: TensorBatch, samples: MicroBatch) -> Scores:
        read, response = self._read, self._response
        output = self._policy(batch, [asked for asked in (read, response) if asked])
        return to_scores(output, batch, samples, self._attention, self._visual, read=read, response=response)


def reference_reads(
    attention: AttentionConfig, visual: VisualRewardConfig
) -> tuple[AttentionRead | None, AttentionRead | None]:
    """Return the reads of the reference's attention: for its records, and for its visual reward."""
    records = AttentionRead.of(attention) if attention.anchor == "reference" else None
    return records, response_at_all_layers(attention) if visual.given_by("reference") else None
