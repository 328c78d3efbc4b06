"""A model whose layers lie on several GPUs, which the CPU pretends to be: where all is, and what a pass gives."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ral_system.algorithms.token_read import TokenRead
from ral_system.attention.probe import Capture
from ral_system.attention.read import AttentionRead
from ral_system.config.commands import TrainConfig
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.models.spread import Share, shares, split, spread
from ral_system.scoring.reference import ReferenceScorer
from ral_system.scoring.scores import to_scores, to_teaching
from ral_system.scoring.teacher import TeacherScorer
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import words
from ral_system.types import Held, Sample
from tests.pretended_gpus import OnGpu, pretended_gpus
from tests.unit.models.test_shared_prompts import Bench
from tests.unit.training.test_families_in_the_learner import FAMILIES, Case

pytestmark = pytest.mark.usefixtures("one_thread")

LAST, RESPONSE = AttentionRead(backend="chunked"), AttentionRead(layers="all", backend="chunked")
EACH = AttentionRead(rows="predicting", keys="no_sinks", layers="all", heads="each", backend="chunked")


@pytest.fixture(scope="module")
def five_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("five") / "model"
    build_tiny_model(folder, words(), hidden=64, layers=5, vision_layers=1, seed=5)
    return folder


def gpu(index: int) -> torch.device:
    return torch.device("cuda", index)


@pytest.mark.parametrize("seed", range(20))
def test_the_fullest_part_is_as_small_as_any_cut_makes_it(seed: int) -> None:
    draw = random.Random(seed)
    sizes, beside, parts = [draw.randint(1, 9) for _ in range(draw.randint(4, 8))], draw.randint(0, 20), seed % 4 + 1
    sums = list(itertools.accumulate(sizes, initial=beside))

    def largest(counts: Sequence[int]) -> int:
        ends = itertools.accumulate(counts)
        of_layers = [sum(sizes[end - count : end]) for end, count in zip(ends, counts, strict=True)]
        return max(beside + of_layers[0], *of_layers)

    legal = [
        counts
        for counts in itertools.product(range(len(sizes) + 1), repeat=parts)
        if sum(counts) == len(sizes) and all(counts[1:])
    ]
    found = split(sums, parts)
    assert found in legal and largest(found) == min(map(largest, legal))


def test_gpus_have_consecutive_layers_and_the_first_has_everything_else(five_layers: Path) -> None:
    model = load_model(five_layers, dtype="float32")
    sizes = {name: p.nbytes for name, p in model.named_parameters()}
    found = shares(model, 3)
    assert [depth for share in found for depth in share.layers] == [0, 1, 2, 3, 4]
    with pretended_gpus(3):
        spread(model, [gpu(0), gpu(1), gpu(2)])
    held = dict.fromkeys(range(3), 0)
    for name, parameter in model.named_parameters():
        index = parameter.device.index
        held[index] += sizes[name]
        if ".language_model.layers." in name:
            assert int(name.split(".layers.")[1].split(".")[0]) in found[index].layers
        else:
            assert index == 0, name
    assert [share.bytes for share in found] == list(held.values())
    assert all(buffer.device == gpu(0) for buffer in model.buffers())


def test_one_gpu_holds_all(five_layers: Path) -> None:
    model = load_model(five_layers, dtype="float32")
    assert shares(model, 1) == [Share(range(5), sum(p.nbytes for p in model.parameters()))]


@torch.no_grad()
def passed(
    policy: PolicyModel, bench: Bench | Case, samples: tuple[Sample, ...], config: TrainConfig, *, home: str = "cuda:0"
) -> list[Any]:
    """Pass samples from one device on, and return what a reference records of it, a teacher with top-k tokens, and one
    with whole distributions, with whatever the pass gives beside that.
    """
    batch, attention = bench.collate(samples).to(home), config.algorithm.attention
    output = policy(batch, [LAST, EACH, RESPONSE], TokenRead(top=3, visual_similarity=True))
    whole = policy(batch, [LAST], TokenRead(whole=True))
    assert output.visual_similarity is not None
    found = [
        to_scores(output, batch, samples, attention, config.reward.visual, read=read, response=RESPONSE)
        for read in (LAST, EACH)
    ]
    found += [to_teaching(of, samples, attention, read=LAST) for of in (output, whole)]
    plain = (output.log_probs, output.entropy, output.top1, output.visual_similarity)
    return [*found, [tensor.cpu().numpy() for tensor in plain]]


def on_gpus(count: int, bench: Bench | Case, samples: tuple[Sample, ...], config: TrainConfig) -> list[Any]:
    """Pass samples through a model of its own on so many GPUs."""
    model, family = load_model(bench.folder, dtype="float32"), load_family(bench.folder)
    with pretended_gpus(count):
        spread(model, [gpu(index) for index in range(count)])
        policy = PolicyModel(model, family, temperature=0.7).eval().requires_grad_(False)
        policy.banned_token_ids = policy.banned_token_ids.to(gpu(0))
        return passed(policy, bench, samples, config)


def assert_same(found: Any, expected: Any, most: float = 0.0) -> None:
    """Compare records, array by array; by default bit for bit."""
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype and np.allclose(found, expected, rtol=0, atol=most)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key], most)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, most)
    elif hasattr(expected, "__dataclass_fields__"):
        for name in expected.__dataclass_fields__:
            assert_same(getattr(found, name), getattr(expected, name), most)
    else:
        assert found == expected or abs(found - expected) <= most


@pytest.fixture(scope="module")
def bench(five_layers: Path, media: MediaStore) -> Bench:
    return Bench(five_layers, media)


@pytest.mark.parametrize(
    "record", [pytest.param(("record=dense",), marks=pytest.mark.long), ("record=top_k", "top_k=4")]
)
def test_three_gpus_give_the_bits_of_one_and_the_numbers_of_a_cpu(
    bench: Bench, make_config: Callable[..., TrainConfig], record: tuple[str, ...]
) -> None:
    """Packed groups of shared prompts, with pictures, a video and neither."""
    config = make_config(*(f"algorithm.attention.{setting}" for setting in record))
    samples = bench.samples(seed=5)
    assert len({s.prompt.id for s in samples}) == 5 < len(samples)
    one, three = (on_gpus(count, bench, samples, config) for count in (1, 3))
    assert_same(three, one)
    policy = PolicyModel(load_model(bench.folder, dtype="float32"), bench.family, temperature=0.7)
    assert_same(three, passed(policy, bench, samples, config, home="cpu"), most=1e-5)


@pytest.mark.parametrize("missed", ["hidden states", "attention"])
def test_what_stays_on_another_gpu_is_an_error(
    bench: Bench, make_config: Callable[..., TrainConfig], missed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missed == "attention":
        groups = Capture.groups
        monkeypatch.setattr(Capture, "groups", lambda capture, device: groups(capture))
    else:
        monkeypatch.setattr(nn.Module, "register_forward_pre_hook", lambda *given, **named: None)
    with pytest.raises((RuntimeError, ValueError), match=r"on one device, found|must be on the device of"):
        on_gpus(2, bench, bench.samples(seed=5), make_config())


SPECIAL = ("qwen3_vl", "gemma3", "qwen3_5")
"""Layers that are given more: features of pictures, windows and masks, or that have states."""


@pytest.mark.parametrize(
    "name", [name if name in SPECIAL else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES]
)
def test_every_family_lies_on_two_gpus_as_on_one(
    name: str, make_config: Callable[..., TrainConfig], media: MediaStore, tmp_path: Path
) -> None:
    case, config = Case(FAMILIES[name], tmp_path, media), make_config()
    assert_same(*(on_gpus(count, case, tuple(case.judged), config) for count in (2, 1)))


def test_a_scorer_on_several_gpus_does_not_leave_them(
    five_layers: Path, make_config: Callable[..., TrainConfig], media: MediaStore
) -> None:
    config = make_config()
    groups = (config.algorithm.attention, config.reward.visual)
    with pretended_gpus(2):
        scorer = ReferenceScorer(*groups, five_layers, media, dtype="float32", temperature=1.0, max_tokens=150, gpus=2)
        for held in (Held.NOTHING, Held.ALL):
            with pytest.raises(AssertionError, match="would come back whole on the first"):
                scorer.hold(held)
        assert {parameter.device for parameter in scorer._policy.parameters()} == {gpu(0), gpu(1)}


def test_reference_and_teacher_score_on_several_gpus(
    five_layers: Path,
    tiny_model: Path,
    make_config: Callable[..., TrainConfig],
    media: MediaStore,
    rl_samples: list[Sample],
) -> None:
    config = make_config(
        *("algorithm=attention_distill", f"teacher.path={five_layers}", "teacher.max_tokens=150"),
        *("algorithm.attention.backend=chunked", "algorithm.attention.anchor=reference"),
        "algorithm.attention.weight=1",
    )
    found, samples = [], rl_samples[:4]
    for gpus in (1, 3):
        with pretended_gpus(gpus):
            groups = (config.algorithm.attention, config.reward.visual)
            passes = {"dtype": "float32", "temperature": 1.0, "max_tokens": 150, "gpus": gpus}
            reference = ReferenceScorer(*groups, five_layers, media, **passes)  # type: ignore[arg-type]
            models = (config.algorithm, config.teacher, config.teachers[0], five_layers, tiny_model, media)
            teacher = TeacherScorer(*models, temperature=1.0, gpus=gpus)
            for scorer in (reference, teacher):
                places = {parameter.device for parameter in scorer._policy.parameters()}
                assert places == {gpu(index) for index in range(gpus)}
                assert all(isinstance(parameter, OnGpu) for parameter in scorer._policy.parameters())
                scorer.score(samples)
            found.append([scorer.take([s.id for s in samples]) for scorer in (reference, teacher)])
    assert_same(*found)
