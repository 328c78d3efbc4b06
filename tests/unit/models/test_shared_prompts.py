"""Groups that share their prompt have the results of sequences that each have their own prompt."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ral_system.algorithms.token_read import TokenRead
from ral_system.attention.intervention import Intervention
from ral_system.attention.provenance import key_provenance
from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator, groups_of
from ral_system.config.commands import TrainConfig
from ral_system.config.reward import VisualRewardConfig
from ral_system.data.chat import ChatRenderer
from ral_system.media.store import MediaStore
from ral_system.media.videos import VideoLimits
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel, PolicyOutput
from ral_system.scoring.scores import to_scores, to_teaching
from ral_system.types import Prompt, Sample, Scores, VideoSampling
from tests.unit.media.clips import clip
from tests.unit.media.clips import noise as noise_frames

READS = (
    AttentionRead(),
    AttentionRead(rows="predicting", keys="visual", layers="all", heads="each"),
    AttentionRead(rows="answer", keys="prompt", backend="dense"),
    AttentionRead(rows="instruction", keys="no_sinks", layers="all"),
)


def in_float64(folder: Path) -> Any:
    """The tiny model in float64, its norms too, which compute in float32 otherwise."""
    model = load_model(folder, dtype="float32").double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(rms_norm, module.weight, module.variance_epsilon)  # type: ignore
    return model


def rms_norm(weight: Tensor, epsilon: float, x: Tensor) -> Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


class Bench:
    """The tiny model in float64, and random groups of responses to questions about pictures, videos and neither."""

    def __init__(self, folder: Path, media: MediaStore) -> None:
        self.folder, self.family = folder, load_family(folder)
        self.model = in_float64(folder)
        self.collate = Collator(self.family, media)
        noise = np.random.default_rng(0)
        pictures = [
            media.put(Image.fromarray(noise.integers(0, 255, (height, width, 3), dtype=np.uint8)))
            for height, width in ((56, 56), (84, 56), (28, 84))
        ]
        frames = clip(noise_frames(0, 4, 56, 84))
        video = media.put_video(frames, VideoSampling(1.0, 8, 2), VideoLimits())
        renderer = ChatRenderer(self.family, "answer")
        self.prompts = [
            renderer.prompt(id=f"p{i}", kind="", question=question, answer="red", media=of_question)
            for i, (question, of_question) in enumerate(
                [
                    ("what is at a1 ?", pictures[:1]),
                    ("what <image> is at <image> a1 and b1 ?", pictures[1:]),
                    ("what is red ?", []),
                    ("is red at b1 ?", pictures[:1]),
                    ("where is <video> red ?", [video]),
                ]
            )
        ]

    def samples(self, seed: int) -> tuple[Sample, ...]:
        """Groups of one to four responses, in an order of their own."""
        draw = random.Random(seed)
        chosen = draw.sample(self.prompts, draw.randint(1, 5))
        return tuple(self._sample(prompt, i, draw) for prompt in chosen for i in range(draw.randint(1, 4)))

    def _sample(self, prompt: Prompt, index: int, draw: random.Random) -> Sample:
        words = ["<think>", "a1", "red", "</think>", "<answer>", "red", "circle", "</answer>", "<|im_end|>"]
        ids = self.family.tokenizer.convert_tokens_to_ids(draw.sample(words, draw.randint(1, len(words))))
        return Sample(f"{prompt.id}#{index}", prompt, tuple(ids), advantage=draw.uniform(-1, 1))

    def policy(self, intervention: Intervention | None = None) -> PolicyModel:
        return PolicyModel(self.model, self.family, temperature=0.7, intervention=intervention)


@pytest.fixture(scope="module")
def bench(tiny_model: Path, media: MediaStore) -> Bench:
    return Bench(tiny_model, media)


def runs(bench: Bench, samples: tuple[Sample, ...], policy: PolicyModel) -> list[tuple[PolicyOutput, Any, Any]]:
    """Outputs, batches and samples: all together first, then one by one."""
    found = []
    for part in (samples, *((sample,) for sample in samples)):
        batch = bench.collate(part)
        found.append((policy(batch, READS), batch, part))
    return found


def gradients(bench: Bench, loss: Tensor) -> dict[str, Tensor]:
    bench.model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {name: p.grad for name, p in bench.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("intervention", [None, Intervention(0.5, 0.4), Intervention(0.3, 0.2, "logits", (1,), (0,))])
@pytest.mark.parametrize("seed", range(6))
def test_log_probs_rows_and_gradients_are_those_of_sequences_apart(
    bench: Bench, seed: int, intervention: Intervention | None
) -> None:
    samples, found = bench.samples(seed), []
    (together, batch, _), *alone = runs(bench, samples, bench.policy(intervention))
    assert batch.packing.tokens <= batch.packing.unshared_tokens
    weights = torch.Generator().manual_seed(seed)
    log_probs = [together.log_probs[i, : len(s.response_token_ids)] for i, s in enumerate(samples)]
    rows: list[list[Tensor]] = [[] for _ in samples]
    for read in READS:
        first = 0
        for group in together.attention[read]:
            for layer in range(len(group.layers)):
                for response, block in group.by_response(iter(differentiable(group, layer))):
                    rows[first + response].append(block)
            first += len(group.counts)
    for i, (output, _, _) in enumerate(alone):
        of_sample = [p for read in READS for g in output.attention[read] for at in range(len(g.layers))
                     for p in differentiable(g, at)]  # fmt: skip
        assert (output.log_probs[0] - log_probs[i]).abs().max() <= 1e-6  # which is float32
        assert torch.equal(output.top1[0], together.top1[i, : output.top1.shape[1]])
        assert len(of_sample) == len(rows[i])
        for one, other in zip(of_sample, rows[i], strict=True):
            assert one.shape == other.shape
            assert not one.numel() or (one - other).abs().max() <= 1e-10
        noise = [torch.randn(p.shape, generator=weights, dtype=p.dtype) for p in of_sample]
        found.append((of_sample, noise))
    losses = []
    for of_all in (rows, [of_sample for of_sample, _ in found]):
        losses.append(sum((p * n).sum() for i, of in enumerate(of_all) for p, n in zip(of, found[i][1], strict=True)))
    a, b = (gradients(bench, loss) for loss in losses)
    largest = max(float(g.abs().max()) for g in a.values())
    assert a.keys() == b.keys() and largest > 0
    for name, gradient in a.items():
        exact = 1e-8 if "visual" in name else 1e-10  # the encoder's rotary embedding computes in float32
        assert float((gradient - b[name]).abs().max()) <= exact * max(1.0, largest), name


def differentiable(group: Any, layer: int) -> list[Tensor]:
    """The dense policies of one layer, as one block."""
    from ral_system.attention.policy import dense_policy

    at = group.layers[layer]
    return [dense_policy(at.query, at.key, group.rows, at.scale, group.branches, group.key_mask, group.heads)]


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_hidden_states_and_log_probs_have_the_gradients_of_sequences_apart(
    bench: Bench, seed: int, recomputed: bool
) -> None:
    """Hidden states in float64; log-probs through the head's float32. With gradient checkpointing as well."""
    samples, states = bench.samples(seed), HeadInputs(bench.model)
    policy = bench.policy()
    if recomputed:
        bench.model.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train()
    (together, *_), *alone = runs(bench, samples, policy)
    states.hook.remove()
    shared, *apart = states.found
    assert len(shared) == sum(len(s.response_token_ids) for s in samples)
    of_each = shared.split([len(s.response_token_ids) for s in samples])
    for one, other in zip(of_each, apart, strict=True):
        assert (one - other).abs().max() <= 1e-10
    noise = [torch.randn(of.shape, generator=torch.Generator().manual_seed(i)).double() for i, of in enumerate(apart)]
    advantages = torch.tensor([s.advantage for s in samples])
    losses = [
        (sum_of_products(of_each, noise), sum_of_products(apart, noise), 1e-10),
        (
            (together.log_probs.sum(-1) * advantages).sum(),
            sum(advantages[i] * output.log_probs.sum() for i, (output, *_) in enumerate(alone)),
            1e-5,
        ),
    ]
    for ours, theirs, bound in losses:
        a, b = (gradients(bench, loss) for loss in (ours, theirs))
        assert a.keys() == b.keys()
        largest = max(float(g.abs().max()) for g in a.values())
        for name, gradient in a.items():
            exact = max(bound, 1e-8) if "visual" in name else bound  # the encoder's rotary embedding is float32
            assert (gradient - b[name]).abs().max() <= exact * largest, name
    bench.model.gradient_checkpointing_disable()
    bench.model.eval()


class HeadInputs:
    """Hidden states that the head reads in each pass, while the hook is on."""

    def __init__(self, model: Any) -> None:
        self.found: list[Tensor] = []
        self.hook = model.lm_head.register_forward_pre_hook(lambda _, given: self.found.append(given[0]))


def sum_of_products(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Any:
    return sum((value * weight).sum() for value, weight in zip(values, weights, strict=True))


SETTINGS = ("", "algorithm.attention={record: top_k, top_k: 5}", "algorithm.attention.record_dtype=bfloat16")


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("read", READS)
def test_scores_and_divergences_are_those_of_sequences_apart(
    bench: Bench,
    make_config: Callable[..., TrainConfig],
    read: AttentionRead,
    settings: str,
    long: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if long:  # groups are then cut up where they would be mostly empty
        monkeypatch.setattr("ral_system.attention.group.MASKED_TOKENS", 0)
    config = make_config(*filter(None, [settings]), "reward.visual.weight=0.1")
    attention, visual = config.algorithm.attention, config.reward.visual
    samples, policy = bench.samples(11), bench.policy()
    assert max(len(group) for group in groups_of(samples)) > 1
    teachers = PolicyModel(moved(bench), bench.family, temperature=0.7)
    scores, divergences = [], []
    for parts in ([samples], [(sample,) for sample in samples]):
        of_all: Scores = {}
        found: list[Tensor] = []
        for part in parts:
            batch = bench.collate(part)
            with torch.no_grad():
                frozen = teachers(batch, [read, READS[0]], TokenRead(top=3))
                mine = policy(batch, [read])
            records = to_scores(frozen, batch, part, attention, visual, read=read, response=READS[0], version=0)
            of_all |= records
            for rows, group in zip(mine.attention[read], groups_of(part), strict=True):
                divergence = rows.divergence([records[s.id].attention for s in group], "jsd")
                found += divergence.split(rows.counts)
            taught = to_teaching(frozen, part, attention, read=read)
            for sample in part:
                assert taught[sample.id].tokens is not None and len(taught[sample.id].attention) == 1
                assert same(taught[sample.id].attention[0].values, records[sample.id].attention[0].values)
        scores.append(of_all)
        divergences.append(found)
    for sample in samples:
        one, other = (of[sample.id] for of in scores)
        assert np.abs(one.log_probs - other.log_probs).max() <= 1e-6
        assert one.visual_reward == (None if other.visual_reward is None else pytest.approx(other.visual_reward))
        for a, b in zip(one.attention, other.attention, strict=True):
            assert a.tokens == b.tokens and same(a.values, b.values)
            assert (a.indices is None) == (settings != SETTINGS[1])
        for name, values in other.row_statistics.items():
            assert one.row_statistics[name] == pytest.approx(values, abs=1e-6), name
    batch = bench.collate(samples)
    with torch.no_grad():
        mine = policy(batch, [read])
    own = to_scores(mine, batch, samples, attention, visual, read=read, response=None, version=0)
    for rows, group in zip(mine.attention[read], groups_of(samples), strict=True):
        divergence = rows.divergence([own[s.id].attention for s in group], "jsd")
        assert not divergence.any() or (settings == SETTINGS[1] and divergence.max() < 1e-15)  # its tail is float32
    for one, other in zip(*divergences, strict=True):
        assert one.shape == other.shape and torch.allclose(one, other, atol=2e-6)
    assert max(float(d.max()) for d in divergences[0] if len(d)) > 1e-5


def same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == np.uint16:  # bfloat16 bits
        return bool((np.abs(a.astype(int) - b.astype(int)) <= 1).all())
    return a.shape == b.shape and bool(np.allclose(a, b, atol=1e-6))


def moved(bench: Bench) -> Any:
    """A model whose weights are a little off."""
    model = in_float64(bench.folder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def test_a_medium_is_encoded_once_however_often_it_occurs(bench: Bench) -> None:
    first, last = bench.prompts[0], bench.prompts[3]  # two questions about one picture
    samples = tuple(Sample(f"s{i}", prompt, (3,)) for i, prompt in enumerate([first, first, last, first]))
    batch = bench.collate(samples)
    assert len(batch.features["image_grid_thw"]) == 1 and batch.occurrences == (("image", 0),) * 3
    patches = []
    handle = bench.model.model.visual.register_forward_pre_hook(lambda _, inputs: patches.append(len(inputs[0])))
    with torch.no_grad():
        bench.policy()(batch)
    handle.remove()
    assert patches == [16]


def test_the_same_prompt_apart_from_its_neighbours_is_a_group_of_its_own(bench: Bench) -> None:
    a, b = bench.prompts[:2]
    samples = tuple(Sample(f"s{i}", replace(p), (3, 4)) for i, p in enumerate([a, a, b, a]))
    assert [len(group) for group in groups_of(samples)] == [2, 1, 1]
    assert key_provenance(torch.zeros(3).bool(), (), system_tokens=0, prompt_tokens=1).position.tolist() == [0, 1, 2]
    assert VisualRewardConfig.model_fields  # the settings that `to_scores` reads
