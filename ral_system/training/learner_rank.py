"""One rank of the learner: scores and trains its samples. It knows other processes only through sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ral_system.algorithms.token_read import TokenRead
from ral_system.attention.group import GroupAttention
from ral_system.attention.read import QUESTION_AT_ALL_LAYERS, AttentionRead, response_at_all_layers
from ral_system.batches.collate import Collator, TensorBatch
from ral_system.batches.features import FeatureExtractor
from ral_system.config.choices import Stage
from ral_system.config.commands import TrainConfig
from ral_system.config.perception import BlindedGroup, VgpoConfig
from ral_system.media.store import MediaStore
from ral_system.models.autocast import autocast_dtype
from ral_system.models.loading import TORCH_DTYPES
from ral_system.models.policy import PolicyOutput
from ral_system.observability.work import Work
from ral_system.scoring.build import build_policy
from ral_system.scoring.reference import reference_reads
from ral_system.scoring.scores import kl_sums, merge_teachers, of_makers, to_scores
from ral_system.training.average import WeightAverage
from ral_system.training.blinded_view import BlindedView
from ral_system.training.build import build_engine, choose_trained, loading
from ral_system.training.evidence import evidence_rows
from ral_system.training.frozen_vision import FrozenVision
from ral_system.training.gradient_share import factor_and_metrics, squared_norms, without_weight
from ral_system.training.group_glances import with_group_glances
from ral_system.training.log_prob_gate import check_all_log_probs, log_prob_gaps, quantile
from ral_system.training.looks import looks
from ral_system.training.meter import Meter
from ral_system.training.metric_sums import reduced_metrics
from ral_system.training.objective import Objective, policy_objective
from ral_system.training.optim import optim_settings
from ral_system.training.scores import UpdateScores
from ral_system.training.shards import Shards
from ral_system.training.supervised import supervised_objective
from ral_system.training.token_reads import token_read
from ral_system.training.visual_factors import with_visual_factors
from ral_system.training.weight_source import WeightSource
from ral_system.training.weights_in_place import PastWeights
from ral_system.types import (
    Held,
    Holding,
    MicroBatch,
    Sample,
    SampleScores,
    Scores,
    TensorDigest,
    TrainPlan,
    UpdatePlan,
    VisualAttention,
    WeightManifest,
)
from ral_system.weights.transfer.object_store import ObjectStore
from ral_system.weights.transfer.transfer import Offer, Setting, Transfer

MakeRead = Callable[[MicroBatch], TokenRead]
MakeObjective = Callable[[PolicyOutput, Sequence[GroupAttention], TensorBatch, MicroBatch], Objective]


class LearnerRank:
    """Owns an engine, a collator and the trained weights. All ranks call each method together, with their own shard.

    Neighbouring ranks may have one together (`learner.sequence_parallel`), and compute the same of it.

    `stage` picks the optimiser settings; `model_folder` is where the stage starts from.
    """

    def __init__(
        self,
        config: TrainConfig,
        model_folder: Path,
        media: MediaStore,
        rank: int,
        world_size: int,
        stage: Stage,
        transfer: Transfer[Any] | None = None,
    ) -> None:
        self._config = config
        self._rank = rank
        self._start = model_folder
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        supervised = None if stage == "rl" else config.supervised(stage)
        self._guidance = supervised.attention_guidance if supervised and supervised.attention_guidance.active else None
        self._read = QUESTION_AT_ALL_LAYERS if self._guidance else AttentionRead.of(config.algorithm.attention)
        settings, timeout_s = optim_settings(config, stage), config.cluster.start_timeout_s
        with loading(config.learner, settings, device, timeout_s):
            policy = build_policy(
                model_folder,
                device,
                self._read,
                dtype=config.learner.dtype,
                temperature=1.0 if supervised else config.rollout.temperature,  # demonstrations fit the model as used
            )
        torch.manual_seed(config.seed)  # how a model is loaded may draw numbers
        policy.autocast = autocast_dtype(supervised.autocast, device, config.learner.dtype) if supervised else None
        self.attention_kernel = policy.attention_kernel()
        self._family = policy.family
        self._collate = Collator(self._family, media)
        self._adapters = choose_trained(policy, config.model, config.learner)
        self._meter = Meter(policy, device)
        self._engine = build_engine(config.learner, settings, policy, device, timeout_s)
        self._shards = Shards(self._engine, rank, world_size)
        self._engine.policy.train()  # no dropout anywhere; needed for gradient checkpointing
        self._vision = None
        if stage == "rl" and config.freezes_vision:
            extract = FeatureExtractor(self._family, media)
            self._vision = FrozenVision(self._engine.policy, extract, device, config.learner.pass_tokens)
        attention, perception = config.algorithm.attention, config.algorithm.perception
        view = (self._engine, self._collate, self._shards, config.learner.pass_tokens, config.seed)
        self._blinded = BlindedView(perception, *view) if isinstance(perception, BlindedGroup) else None
        self._version, self._holding = 0, Holding("learner rank")
        staleness = config.algorithm.max_staleness if stage == "rl" else 0
        self._past = PastWeights(self._engine, staleness)
        transfer = transfer or ObjectStore(Setting.of_one_process(rank=rank))
        self._source = WeightSource(self._engine, TORCH_DTYPES[config.rollout.dtype], rank, transfer, self._adapters)
        averages = stage == "rl" and attention.anchor == "ema"
        self._average = WeightAverage(self._engine, attention.ema_decay) if averages else None

    def score(self, plan: TrainPlan) -> Scores:
        """Old log-probs and attention of this rank's samples, at the weights that made them; with anchor=ema their
        attention records, with reward.visual.model=policy also how much they look at pictures, with
        algorithm.perception log-probs of the blinded view, or how alike tokens are to pictures.

        A sample that several weights made is scored at each, and every token takes what the weights say that made it.
        Gate: log-probs must match what the rollout engine reported for the same tokens (`log_prob_gate`), else
        LogProbError names the sample.
        """
        attention = self._config.algorithm.attention
        response = response_at_all_layers(attention) if self._config.reward.visual.given_by("policy") else None
        by_shard = [plan.rank_samples(shard) for shard in range(self._shards.count)]
        if self._vision is not None:
            self._vision.encode(by_shard, self._shards.own)
        mine, made = by_shard[self._shards.own], plan.versions_by_micro_batch()
        found: dict[str, dict[int, SampleScores]] = defaultdict(dict)
        for version in sorted(frozenset().union(*made)):
            with self._at(version):
                for samples in (samples for samples, versions in zip(mine, made, strict=True) if version in versions):
                    scores = self._score(mine, samples, version, self._read, response, behaves=True)
                    for sample in (sample for sample in samples if version in sample.weight_versions):
                        found[sample.id][version] = scores[sample.id]
        scores_by_id = {
            s.id: of_makers(s, found[s.id], attention.rows, self._collate.rows) for samples in mine for s in samples
        }
        check_all_log_probs(by_shard, self._shards, scores_by_id, self._config.rollout.log_prob_gate)
        scores_by_id = with_group_glances(by_shard, self._shards, scores_by_id)
        if self._blinded is not None:
            scores_by_id = self._blinded.added(plan, scores_by_id, self._version, self._at)
        if isinstance(perception := self._config.algorithm.perception, VgpoConfig):
            scores_by_id = with_visual_factors(plan, self._shards, scores_by_id, perception)
        if self._average is not None:
            with self._average.in_place():
                averages = {id: s for samples in mine for id, s in self._score(mine, samples, None, self._read).items()}
            scores_by_id = {id: replace(s, attention=averages[id].attention) for id, s in scores_by_id.items()}
        return scores_by_id

    def check_log_probs(self, plan: TrainPlan) -> float:
        """Gate as `score` does, without `autocast`, which engines do not use; return the largest difference in nats."""
        by_shard = [plan.rank_samples(shard) for shard in range(self._shards.count)]
        mine = by_shard[self._shards.own]
        with self._meter.apart(), self._engine.policy.without_autocast():
            if self._vision is not None:
                self._vision.encode(by_shard, self._shards.own)
            scores = {id: s for samples in mine for id, s in self._score(mine, samples, None, None).items()}
        return check_all_log_probs(by_shard, self._shards, scores, self._config.rollout.log_prob_gate)

    def score_reference(self, plan: TrainPlan) -> Scores:
        """Score this rank's samples with the model without adapters; call it after `score` of the same plan."""
        assert self._adapters is not None, "without adapters the reference is a model of its own"
        mine = plan.rank_samples(self._shards.own)
        reads = reference_reads(self._config.algorithm.attention, self._config.reward.visual)
        with self._adapters.switched_off():
            return {id: s for samples in mine for id, s in self._score(mine, samples, None, *reads).items()}

    @contextmanager
    def _at(self, version: int) -> Iterator[None]:
        """Put these weights in place during the block: the current ones, or a past version's."""
        with nullcontext() if version == self._version else self._past.at(version):
            yield

    def _score(
        self,
        shard: Sequence[MicroBatch],
        samples: MicroBatch,
        version: int | None,
        read: AttentionRead | None,
        response: AttentionRead | None = None,
        *,
        behaves: bool = False,
    ) -> Scores:
        """Pass a micro-batch; `behaves` reads what is known of the policy that made it alone."""
        algorithm = self._config.algorithm
        tokens = TokenRead(visual_similarity=behaves and isinstance(algorithm.perception, VgpoConfig))
        with torch.no_grad():
            reads = [asked for asked in (read, response) if asked]
            batch, output = self._forward(shard, samples, reads, lambda _: tokens)
        if not samples:
            return {}
        settings = (algorithm.attention, self._config.reward.visual)
        return to_scores(
            output, batch, samples, *settings, read=read, response=response, version=version, glances=behaves
        )

    def kl(self, behaviour: Scores, reference: Scores) -> dict[str, float]:
        """Sum over the response of the configured estimate of KL(pi ‖ reference), sample by sample, in nats."""
        return kl_sums(self._config.algorithm.kl.estimator, behaviour, reference)

    def update(
        self, update: UpdatePlan, behaviour: Scores, reference: Scores | None, *teachers: Scores
    ) -> dict[str, float]:
        """One optimiser update with the policy objective; metrics are of all ranks. `teachers`: scores by up to two."""
        algorithm = self._config.algorithm
        anchor = behaviour
        if algorithm.attention.anchor == "reference":
            assert reference is not None, "anchor=reference needs the reference policy's scores"
            anchor = reference
        everyone = [s for shard in update.shards for samples in shard for s in samples]
        counts = replace(
            update.counts,
            attention_rows=max(1, sum(len(self._collate.rows(algorithm.attention.rows, s)) for s in everyone)),
            evidence_rows=evidence_rows(everyone, self._collate, self._family, algorithm.attention),
        )
        scores = UpdateScores(behaviour, reference, anchor, merge_teachers(teachers))
        largest_gap = self._config.rollout.log_prob_gate.token

        def objective(
            output: PolicyOutput, rows: Sequence[GroupAttention], batch: TensorBatch, samples: MicroBatch
        ) -> Objective:
            return policy_objective(output, rows, batch, samples, counts, scores, algorithm, largest_gap=largest_gap)

        def tokens(samples: MicroBatch) -> TokenRead:
            return token_read(samples, scores.teaching, algorithm, self._engine.policy.vocabulary)

        factor, shares = self._attention_share(update.shards[self._shards.own], objective, tokens)
        own_gaps = log_prob_gaps(update.shards, self._shards.own, behaviour)
        metrics, gaps = self._update(update, objective, self._read, own_gaps, tokens, attention_factor=factor)
        # Of this update's tokens; the gate bounds that of the whole batch.
        metrics |= shares | {"gate/log_prob_diff_p999": quantile(gaps)}
        if self._average is not None:
            self._average.update()
        return metrics

    def fit(self, update: UpdatePlan) -> dict[str, float]:
        """One optimiser update with the supervised objective."""
        guidance = self._guidance

        def objective(
            output: PolicyOutput, rows: Sequence[GroupAttention], batch: TensorBatch, samples: MicroBatch
        ) -> Objective:
            return supervised_objective(output, rows, batch, update.counts, guidance)

        return self._update(update, objective, self._read if guidance else None)[0]

    def validate(self, update: UpdatePlan) -> dict[str, float]:
        """Evaluate the supervised objective without an update: held-out loss and token accuracy."""
        shares, shard = [], update.shards[self._shards.own]
        for samples in shard:
            with torch.no_grad(), self._meter.apart():
                batch, output = self._forward(shard, samples)
            if samples:
                shares.append(supervised_objective(output, (), batch, update.counts))
        metrics, _ = reduced_metrics(shares, update.counts, self._shards)
        return {name.replace("supervised/", "held_out/"): value for name, value in metrics.items()}

    def work(self) -> Work:
        """Report the work of this rank since the last call: its updates, and all that its vision encoder did."""
        return self._meter.take()

    def look(self, samples: Sequence[Sample]) -> dict[str, VisualAttention]:
        """Return maps of where the rows of each sample's answer look. All ranks compute the same."""
        self._holding.require(Held.ALL, "compute")
        with self._meter.apart():
            return looks(self._engine, self._collate, samples, replace(self._read, rows="answer", keys="all"))

    def hold(self, held: Held) -> None:
        """Keep this on the device; every rank calls it between updates."""
        with self._holding.changing(held):
            if held < Held.ALL and self._vision is not None:
                self._vision.forget()
            if self._average is not None:
                self._average.hold(held)
            self._engine.hold(held)

    def publish(self, version: int) -> WeightManifest | None:
        """Take the current weights as `version`: their identity on rank 0, None on the others. Every rank calls it."""
        self._holding.require(Held.WEIGHTS, "publish weights")
        self._version = version
        self._past.remember(version)
        return self._source.manifest(version)

    def offer(self, manifest: WeightManifest, names: Sequence[str]) -> tuple[Mapping[str, TensorDigest], Offer | None]:
        """Offer the named tensors of the version just published (`WeightSource.offer`)."""
        self._holding.require(Held.WEIGHTS, "offer weights")
        return self._source.offer(manifest, names)

    def send(self, offer: Offer) -> Mapping[str, TensorDigest]:
        """Send what was offered to the engines that receive it now; return its digests, on rank 0."""
        return self._source.send(offer)

    def save_model(self, folder: Path) -> None:
        """Write the model in Hugging Face format, and adapters beside it (rank 0; every rank calls it)."""
        self._holding.require(Held.WEIGHTS, "save its model")
        self._source.save(self._family.processor, folder, self._start)

    def save(self, folder: Path) -> None:
        """Write this rank's share of weights, optimiser and schedule."""
        self._holding.require(Held.ALL, "save its state")
        self._engine.save(folder)
        if self._average is not None:
            self._average.save(folder / f"average_{self._rank}.safetensors")

    def load(self, folder: Path) -> None:
        """Continue exactly from what `save` wrote."""
        self._holding.require(Held.ALL, "load its state")
        self._engine.load(folder)
        self._source.forget()
        if self._average is not None:
            self._average.load(folder / f"average_{self._rank}.safetensors")

    def _update(
        self,
        update: UpdatePlan,
        objective: MakeObjective,
        read: AttentionRead | None,
        values: np.ndarray | None = None,
        tokens: MakeRead | None = None,
        *,
        attention_factor: float = 1.0,
    ) -> tuple[dict[str, float], np.ndarray]:
        """Train on one update. Metrics of all ranks come back, and `values` added up over ranks."""
        shard = update.shards[self._shards.own]
        objectives = []
        if self._rank == 0:
            self._meter.count_distinct(update)
        with self._meter.update():
            for index, samples in enumerate(shard):
                batch, output = self._forward(shard, samples, [read] if read else [], tokens)
                if self._shards.is_first:
                    self._meter.count(batch, samples)
                if samples:
                    found = objective(output, output.attention[read] if read else (), batch, samples)
                    loss = found.loss if found.attention is None else found.loss + attention_factor * found.attention
                    # A graph holds records and keys.
                    objectives.append(replace(found, loss=loss.detach(), attention=None))
                    del found
                else:
                    loss = 0.0 * output.log_probs.sum()
                del output
                self._engine.backward(loss, last=index == len(shard) - 1)
                del loss
            norm = self._engine.step()
        metrics, values = reduced_metrics(objectives, update.counts, self._shards, values)
        return metrics | {"learner/grad_norm": norm, "learner/learning_rate": self._engine.learning_rate()}, values

    def _forward(
        self,
        shard: Sequence[MicroBatch],
        samples: MicroBatch,
        reads: Sequence[AttentionRead] = (),
        tokens: MakeRead | None = None,
    ) -> tuple[TensorBatch, PolicyOutput]:
        """Pass a micro-batch of `shard` through the policy.

        In place of an empty one goes a sample of the shard: ranks under ZeRO-3 wait for each other in every pass.
        """
        self._holding.require(Held.ALL, "compute")
        passing = samples or next(m for m in shard if m)[:1]
        batch = self._collate(passing, self._vision.encoded if self._vision else None).to(self._engine.device)
        return batch, self._engine.forward(batch, reads, tokens(samples) if tokens and samples else None)

    def _attention_share(
        self, shard: tuple[MicroBatch, ...], objective: MakeObjective, tokens: MakeRead
    ) -> tuple[float, dict[str, float]]:
        """The factor on the attention term, and metrics, when its share is bounded, held, or due to be measured.

        The norms of the whole update decide, so every micro-batch goes forward once more beforehand.
        """
        settings, version = self._config.algorithm.attention, self._version
        limit, every = settings.gradient_share, settings.gradient_share_every
        if settings.weight == 0 or (limit is None and (every == 0 or version % every)):
            return 1.0, {}
        squared = torch.zeros(2, dtype=torch.float64)
        for samples in shard:
            read = replace(self._read, whole=True)
            batch, output = self._forward(shard, samples, [read], tokens)
            make = objective if samples else without_weight
            squared += squared_norms(make(output, output.attention[read], batch, samples), output.probed)
        return factor_and_metrics(self._engine.sum_over_ranks(squared).cpu(), settings, self._config.learner.dtype)
