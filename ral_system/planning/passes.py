"""Memory and operations of a policy's passes, from the real code on tensors that have a shape and no data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from ral_system.attention.packing import PackedGroup, Packing
from ral_system.attention.probe import IMPLEMENTATION
from ral_system.attention.read import QUESTION_AT_ALL_LAYERS, AttentionRead
from ral_system.batches.collate import Collator, TensorBatch
from ral_system.batches.features import FeatureExtractor
from ral_system.batches.micro_batches import groups_of
from ral_system.config.choices import Dtype
from ral_system.config.commands import TrainConfig
from ral_system.config.perception import BlindedGroup, VgpoConfig
from ral_system.config.supervised import AttentionGuidanceConfig
from ral_system.device_kind import meta_stands_for
from ral_system.families.family import Family, Features
from ral_system.media.store import MediaStore
from ral_system.models.flops import FlopCounter, update_passes
from ral_system.models.loading import TORCH_DTYPES, load_family
from ral_system.models.patches import attend_to_segments_together, embed_patches_by_product
from ral_system.models.policy import PolicyModel, PolicyOutput
from ral_system.planning.outline import OUTLINE, OutlinedRanks, Outlines
from ral_system.planning.workload import BlankMedia
from ral_system.training.build import choose_trained
from ral_system.training.gradient_share import squared_norms
from ral_system.training.objective import Objective, policy_objective
from ral_system.training.scores import UpdateScores
from ral_system.training.supervised import supervised_objective
from ral_system.training.token_reads import token_read
from ral_system.types import AttentionRecord, Counts, Media, MicroBatch, Sample, SampleScores, Scores, TokenRecord


@dataclass(frozen=True, slots=True)
class Held:
    """Memory of a pass beside the model's weights, in bytes."""

    peak: int
    """Peak memory."""
    kept: int
    """Memory of its results."""


class OutlinedPolicy:
    """The outline of a model as a policy, for passes on a `kind` of device: cpu or cuda."""

    def __init__(self, folder: Path, dtype: Dtype, kind: str, config: TrainConfig, *, trained: bool) -> None:
        self.family = load_family(folder)
        self.kind, self._config = kind, config
        self._policy = new_policy(self.family, dtype, OUTLINE, config, trained=trained)
        self._together = config.learner.world_size // config.learner.shards if trained else 1
        if self._together > 1:
            self._policy.share(OutlinedRanks(self._together - 1, self._together))  # which has most responses
        self.model = self._policy.model
        self.collate, self._extract = blank_readers(self.family)
        self.read = AttentionRead.of(config.algorithm.attention)

    def encode(self, media: Sequence[Media]) -> tuple[Held, Mapping[Media, Any]]:
        """Return the memory of encoding media in one pass without gradients, and outlines of the results.

        If ranks share the media, this is the rank that needs most.
        """
        features = self._extract(media)
        of_ranks = [self._encode(media, features, rank) for rank in range(self._together)]
        return max(of_ranks, key=lambda found: found[0].peak)

    def _encode(self, media: Sequence[Media], features: Features, rank: int) -> tuple[Held, Mapping[Media, Any]]:
        sequence = None if self._together == 1 else OutlinedRanks(rank, self._together)
        with self._outlined() as outlines, torch.no_grad():
            found = self.family.encode(self._policy.model.model, features, sequence)
        seen = {kind: iter(of_kind) for kind, of_kind in found.items()}
        encoded = {medium: next(seen[medium.kind]) for medium in media}
        return Held(outlines.peak_bytes, outlines.held_bytes), encoded

    def score(
        self, samples: MicroBatch, reads: Sequence[AttentionRead] = (), encoded: Mapping[Media, Any] | None = None
    ) -> Held:
        """Return the memory of scoring samples in one pass. `encoded`: media encoded already; None: none are."""
        return self._peak(samples, encoded, lambda batch: score_pass(self._policy, batch, reads))

    def update(self, samples: MicroBatch, encoded: Mapping[Media, Any] | None = None) -> Held:
        """Return the memory of training on samples in one micro-batch, without the gradients of weights."""
        policy, read = self._policy, self.read
        scores = {sample.id: self.blank_scores(sample) for sample in samples}
        return self._peak(
            samples, encoded, lambda batch: update_pass(policy, batch, samples, scores, self._config, read)
        )

    def fit(self, samples: MicroBatch, guidance: AttentionGuidanceConfig) -> Held:
        """Return the memory of imitating demonstrations in one micro-batch, without the gradients of weights."""
        return self._peak(samples, None, lambda batch: fit_pass(self._policy, batch, samples, guidance))

    def share(self, samples: MicroBatch, encoded: Mapping[Media, Any] | None = None) -> Held:
        """Return the memory of measuring the attention term's share of the gradient on a micro-batch."""
        batch, read = self.collate(samples, encoded), replace(self.read, whole=True)
        scores = {sample.id: self.blank_scores(sample) for sample in samples}
        with self._outlined() as outlines:
            found, output = objective_of(self._policy, batch.to(OUTLINE), samples, scores, self._config, read)
            squared_norms(found, output.probed)
        return Held(outlines.peak_bytes, 0)

    def _peak(
        self, samples: MicroBatch, encoded: Mapping[Media, Any] | None, run: Callable[[TensorBatch], None]
    ) -> Held:
        batch = self.collate(samples, encoded)
        with self._outlined() as outlines:
            run(batch.to(OUTLINE))
        return Held(outlines.peak_bytes, 0)

    def passes_of_an_update(self) -> tuple[int, int]:
        """Return the cost of an update in forward passes of text model and vision encoder; 0 for a frozen encoder."""
        again = 1 if self._config.learner.gradient_checkpointing else 0
        text, vision = map(update_passes, (self.model.get_decoder(), self.family.vision_encoder(self.model)))
        return text + again, vision + again if vision > 1 else 0

    @contextmanager
    def _outlined(self) -> Iterator[Outlines]:
        with meta_stands_for(self.kind), Outlines() as outlines:
            yield outlines

    def blank_scores(self, sample: Sample) -> SampleScores:
        """Return zeros in the shape of the scores of this policy, a reference and teachers together."""
        algorithm, responded = self._config.algorithm, len(sample.response_token_ids)
        settings, top = algorithm.attention, algorithm.distillation.tokens.top_k
        rows, text = len(self.collate.rows(settings.rows, sample)), self.family.config.get_text_config()
        kept = sample.length if settings.record == "dense" else min(settings.top_k, sample.length)
        heads = (text.num_attention_heads,) if settings.heads == "each" else ()
        values = np.zeros((*heads, rows, kept), np.float32 if settings.record_dtype == "float32" else np.uint16)
        keys = np.broadcast_to(np.arange(kept, dtype=np.int32), values.shape)
        compressed = (keys, np.zeros((*heads, rows), np.float32))
        record = AttentionRecord(0, sample.length, values, *(compressed if settings.record == "top_k" else ()))
        layers = (
            len(self.family.softmax_layers)
            if settings.layers == "all"
            else 1
            if settings.layers == "last"
            else len(settings.layers)
        )
        taught = None
        if self._config.teachers:
            width = self._policy.vocabulary if top is None else top + 1
            ids = None if top is None else np.zeros((responded, top), np.int32)
            taught = TokenRecord(np.zeros((responded, width), np.float32), ids)
        of_media = sum(self.family.layout(medium).tokens for medium in sample.prompt.media)
        shared = len(sample.prompt.token_ids) if settings.glance_keys == "prompt" else of_media
        looks = np.zeros((layers, *heads, shared) if settings.compares_looks else (1, shared), np.float32)
        group = np.broadcast_to(looks, (self._config.algorithm.completions_per_prompt, *looks.shape))
        log_probs = np.zeros(responded, np.float32)
        has_view = isinstance(algorithm.perception, BlindedGroup) and sample.prompt.media
        blinded = log_probs.copy() if has_view else None
        compared = log_probs.copy() if isinstance(algorithm.perception, VgpoConfig) and sample.prompt.media else None
        return SampleScores(
            log_probs,
            (record,) * layers,
            tokens=taught,
            group_glances=group,
            blinded_log_probs=blinded,
            visual_similarity=compared,
            token_factors=compared,
        )


@torch.no_grad()
def score_pass(policy: PolicyModel, batch: TensorBatch, reads: Sequence[AttentionRead]) -> None:
    """Run the forward pass of a micro-batch, and read its attention block by block."""
    output = policy(batch, reads)
    for rows in (rows for read in reads for rows in output.attention[read]):
        for layer in range(len(rows.layers)):
            for _ in rows.policies(layer):
                pass


def update_pass(
    policy: PolicyModel,
    batch: TensorBatch,
    samples: MicroBatch,
    scores: Scores,
    config: TrainConfig,
    read: AttentionRead,
) -> None:
    """Run the forward and backward pass of a micro-batch. `scores` stand for those of every frozen model."""
    found, output = objective_of(policy, batch, samples, scores, config, read)
    loss = found.loss if found.attention is None else found.loss + found.attention
    del output, found
    loss.backward()


def fit_pass(policy: PolicyModel, batch: TensorBatch, samples: MicroBatch, guidance: AttentionGuidanceConfig) -> None:
    """Run the forward and backward pass of demonstrations, with the supervised objective."""
    reads = [QUESTION_AT_ALL_LAYERS] if guidance.active else []
    output = policy(batch, reads)
    rows = [rows for read in reads for rows in output.attention[read]]
    found = supervised_objective(output, rows, batch, counts_of(samples), guidance if guidance.active else None)
    loss = found.loss
    del output, rows, found
    loss.backward()


def objective_of(
    policy: PolicyModel,
    batch: TensorBatch,
    samples: MicroBatch,
    scores: Scores,
    config: TrainConfig,
    read: AttentionRead,
) -> tuple[Objective, PolicyOutput]:
    """Run the forward pass of a micro-batch, and compute the configured objective."""
    algorithm, teaching = config.algorithm, scores if config.teachers else {}
    counts = counts_of(samples)
    output = policy(batch, [read], token_read(samples, teaching, algorithm, policy.vocabulary))
    found = policy_objective(
        output,
        output.attention[read],
        batch,
        samples,
        counts,
        UpdateScores(scores, scores if config.needs_reference else None, scores, teaching),
        algorithm,
        largest_gap=1.0,
    )
    return found, output


def counts_of(samples: MicroBatch) -> Counts:
    """Return the denominators of an update with these samples alone."""
    tokens = sum(len(s.response_token_ids) for s in samples)
    return Counts(tokens, len(samples), attention_rows=tokens, evidence_rows=tokens)


def pass_flops(counter: FlopCounter, family: Family, samples: MicroBatch) -> int:
    """Count the operations of a forward pass over a micro-batch, with every medium encoded once."""
    media = dict.fromkeys(medium for sample in samples for medium in sample.prompt.media)
    return text_flops(counter, samples) + counter.vision(family.layout(medium) for medium in media)


def text_flops(counter: FlopCounter, samples: MicroBatch) -> int:
    """Count the operations of the text layers and the head in a forward pass."""
    return counter.text(_packing(samples)) + counter.head(sum(len(s.response_token_ids) for s in samples))


def tokens_of(samples: MicroBatch) -> int:
    """Count the tokens of a packed micro-batch."""
    return _packing(samples).tokens


def _packing(samples: MicroBatch) -> Packing:
    groups = [
        PackedGroup(len(g[0].prompt.token_ids), tuple(len(s.response_token_ids) for s in g)) for g in groups_of(samples)
    ]
    return Packing(tuple(groups))


def blank_readers(family: Family) -> tuple[Collator, FeatureExtractor]:
    """Return a collator and a feature extractor that read every medium as black."""
    store = cast(MediaStore, BlankMedia())
    return Collator(family, store), FeatureExtractor(family, store)


def new_policy(
    family: Family, dtype: Dtype, device: torch.device, config: TrainConfig, *, trained: bool
) -> PolicyModel:
    """Return a policy with new weights, set up as in a learner or a frozen model. On the meta device it has no memory.

    Gradients of weights are dropped as they arrive: engines keep them in buffers of their own.
    """
    family.config._attn_implementation = IMPLEMENTATION
    with device:
        model = AutoModelForImageTextToText.from_config(
            family.config, dtype=TORCH_DTYPES[dtype], attn_implementation=IMPLEMENTATION
        )
    embed_patches_by_product(model)
    attend_to_segments_together(model)
    policy = PolicyModel(model, family, temperature=config.rollout.temperature)
    policy.banned_token_ids = policy.banned_token_ids.cpu()
    policy.requires_grad_(trained).train()
    if trained:
        with device:
            choose_trained(policy, config.model, config.learner)
        if config.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(_drop_gradient)
    return policy


def _drop_gradient(weight: Tensor) -> None:
    weight.grad = None
