"""What families with positions of one axis are compared with: transformers, given the processor's own inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ral_system.attention.policy import dense_policy
from ral_system.attention.read import AttentionRead
from ral_system.attention.sequence import SequenceGroup
from ral_system.attention.window import Window
from ral_system.batches.collate import Collator
from ral_system.data.chat import ChatRenderer
from ral_system.media.store import MediaStore
from ral_system.media.videos import VideoLimits
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.rollout.hf_generator import HfEngine
from ral_system.types import Media, Prompt, Sample, Sampling, VideoSampling
from tests.unit.media.clips import clip, noise


class Bench:
    """A tiny model with questions about pictures of `sizes`, and with `videos` about those."""

    def __init__(
        self, folder: Path, store: MediaStore, sizes: Sequence[tuple[int, int]], *, videos: bool = False
    ) -> None:
        self.folder, self.store, self.family = folder, store, load_family(folder)
        self.model = load_model(folder, dtype="float32")
        self.collate = Collator(self.family, store)
        first, *others = [self.picture(i, *size) for i, size in enumerate(sizes)]
        marks = " and ".join(["<image>"] * len(others))
        asked: list[tuple[str, list[Media]]] = [
            ("what is at a1 ?", [first]),
            (f"what {marks} is at a1 and b1 ?", others),
            ("what is red ?", []),
        ]
        if videos:
            one, two = self.video(1, 4, 56, 84), self.video(2, 4, 28, 28)  # transformers wants equally many frames
            asked += [("what is red ?", [one]), ("what <video> is <image> red <video> ?", [two, first, one])]
        renderer = ChatRenderer(self.family, "answer")
        self.prompts = [
            renderer.prompt(id=f"p{i}", kind="", question=question, answer="", media=media)
            for i, (question, media) in enumerate(asked)
        ]

    def picture(self, seed: int, width: int, height: int) -> Media:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return self.store.put(Image.fromarray(pixels))

    def video(self, seed: int, frames: int, height: int, width: int) -> Media:
        sampling = VideoSampling(1.0, 8, 2, self.family.frames_per_view)
        return self.store.put_video(clip(noise(seed, frames, height, width)), sampling, VideoLimits())

    def samples(self, each: int) -> tuple[Sample, ...]:
        """Return `each` responses to every question, of different lengths."""
        words = self.family.tokenizer.convert_tokens_to_ids(["red", "what", "is", "at"])
        draw = np.random.default_rng(5)
        return tuple(
            Sample(f"{prompt.id}#{i}", prompt, tuple(draw.choice(words, 2 + (3 * i + p) % 5).tolist()))
            for p, prompt in enumerate(self.prompts)
            for i in range(each)
        )

    def processed(self, prompt: Prompt) -> dict[str, Any]:
        """The processor's inputs for a question whose media are not expanded yet."""
        text = self.family.tokenizer.decode(prompt.engine_token_ids)
        media: dict[str, Any] = {}
        for medium in prompt.media:
            pixels = self.store.open(medium) if medium.clip is None else list(self.store.frames(medium))
            media.setdefault("images" if medium.clip is None else "videos", []).append(pixels)
        return dict(self.family.processor(text=[text], return_tensors="pt", **media))


@dataclass
class Alone:
    """Results of transformers for one sample."""

    log_probs: Tensor
    attentions: tuple[Tensor, ...]
    """[1, H, T, T] of each layer."""


def alone(bench: Bench, model: Any, sample: Sample) -> Alone:
    """Compute a sample with eager attention and transformers' own positions; `model` has `eager` set."""
    inputs = bench.processed(sample.prompt)
    assert tuple(inputs["input_ids"][0].tolist()) == sample.prompt.token_ids
    response = torch.tensor([sample.response_token_ids])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], response], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    logits = output.logits[0, len(sample.prompt.token_ids) - 1 : -1]
    logits[:, list(bench.family.banned_ids)] = -torch.inf
    return Alone(logits.log_softmax(-1).gather(-1, response.T)[:, 0], output.attentions)


@torch.no_grad()
def check_packed_is_alone(bench: Bench) -> None:
    """Packed sequences against each by transformers: log-probs and attention, and log-probs with shared prompts.

    Layers have the windows that the family says.
    """
    policy, read = PolicyModel(bench.model, bench.family, temperature=1.0), AttentionRead(layers="all")
    eager = load_model(bench.folder, dtype="float32")
    eager.set_attn_implementation("eager")
    samples = bench.samples(2)
    expected = [alone(bench, eager, sample) for sample in samples]
    shared = policy(bench.collate(samples)).log_probs
    first = samples[::2]
    output = policy(bench.collate(first), [read])
    captured = zip(bench.family.softmax_layers, output.attention[read][0].layers, strict=True)
    assert bench.family.windows == {i: layer.window for i, layer in captured if layer.window is not None}
    for i, (sample, found) in enumerate(zip(samples, expected, strict=True)):
        assert torch.allclose(shared[i, : len(found.log_probs)], found.log_probs, atol=2e-5), sample.id
    for i, (sample, found) in enumerate(zip(first, expected[::2], strict=True)):
        assert torch.allclose(output.log_probs[i, : len(found.log_probs)], found.log_probs, atol=2e-5), sample.id
        rows = torch.arange(len(sample.prompt.token_ids), sample.length)
        for layer, attention in zip(output.attention[read][i].layers, found.attentions, strict=True):
            window = None if layer.window is None else Window(layer.window, torch.arange(len(layer.key)))
            policy_RT = dense_policy(layer.query, layer.key, rows, layer.scale, None, None, "mean", window=window)
            others_RT = attention[0].mean(0).tril(-1)[rows]
            assert torch.allclose(policy_RT, others_RT / others_RT.sum(-1, keepdim=True), atol=3e-6), sample.id


def check_generation_is_scored(bench: Bench, make_config: Callable) -> None:
    """Log-probs of the transformers engine, whose batch is padded, against those of packed scoring."""
    engine = HfEngine(bench.folder, make_config().rollout, bench.store, seed=0)
    sampling = Sampling(completions=2, temperature=1.0, max_new_tokens=5, seed=5)
    found = list(engine.generate(bench.prompts, sampling))
    assert len(found) == 2 * len(bench.prompts)
    of = {prompt.id: prompt for prompt in bench.prompts}
    samples = tuple(Sample(c.id, of[c.prompt_id], c.token_ids) for c in sorted(found, key=lambda c: c.id))
    with torch.no_grad():
        scored = PolicyModel(bench.model, bench.family, temperature=1.0)(bench.collate(samples)).log_probs
    for completion in found:
        row = [sample.id for sample in samples].index(completion.id)
        own = scored[row, : len(completion.token_ids)]
        assert torch.allclose(own, torch.tensor(completion.log_probs), atol=2e-5)


def check_places(bench: Bench, width: int, height: int) -> None:
    """A change of few pixels changes that token most which a view with this place has there, or its neighbour."""
    medium = bench.picture(9, width, height)
    pixels = np.asarray(bench.store.open(medium))
    rows, columns = np.array([0.07, 0.45, 0.93]) * height, np.array([0.04, 0.3, 0.55, 0.96]) * width
    changed = []
    for row, column in [(int(r), int(c)) for r in rows for c in columns]:
        other = pixels.copy()
        other[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] ^= 255
        changed.append(((row + 0.5) / height, (column + 0.5) / width, Image.fromarray(other)))
    seen = [encoded(bench, medium, picture) for picture in (Image.fromarray(pixels), *(p for _, _, p in changed))]
    for (y, x, _), after in zip(changed, seen[1:], strict=True):
        at = int((after - seen[0]).norm(dim=-1).argmax())
        left, top, right, bottom = box_of(bench, medium, at)
        aside, above = (right - left) / 4, (bottom - top) / 4
        assert left - aside <= x <= right + aside and top - above <= y <= bottom + above, (x, y, at)


@torch.no_grad()
def encoded(bench: Bench, medium: Media, picture: Image.Image) -> Tensor:
    (features,) = bench.family.features([medium], [picture])
    return bench.family.encode(bench.model.model, features)["image"][0]


def box_of(bench: Bench, medium: Media, token: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of a visual token."""
    for view in bench.family.layout(medium).views:
        if token < view.tokens:
            row, column = divmod(token, view.columns + view.line_end)
            left, top, right, bottom = view.box
            wide, tall = (right - left) / view.columns, (bottom - top) / view.rows
            return left + column * wide, top + row * tall, left + (column + 1) * wide, top + (row + 1) * tall
        token -= view.tokens
    raise AssertionError(token)


@dataclass(frozen=True)
class OneByOne(SequenceGroup):
    """Ranks that come one after the other: the last finds what all saw."""

    told: list[Tensor]

    def exchange(self, x: Tensor, received: Sequence[int], sent: Sequence[int]) -> Tensor:
        self.told.append(x[: sent[0]])
        whole = torch.cat(self.told)
        return whole if len(whole) == sum(received) else x.new_zeros(sum(received), *x.shape[1:])

    def total(self, x: Tensor) -> Tensor:
        raise AssertionError


@torch.no_grad()
def check_shared_tiles(bench: Bench) -> None:
    """Two ranks encode a part of the tiles and frames each, and have what one sees in all of them."""
    media = [medium for prompt in (bench.prompts[1], bench.prompts[-1]) for medium in prompt.media]
    unique, _ = bench.collate._extract.distinct(media)
    features = bench.collate._extract(unique)
    told: list[Tensor] = []
    whole = bench.family.encode(bench.model.model, features)
    bench.family.encode(bench.model.model, features, OneByOne(0, 2, told))
    assert 0 < len(told[0]) < sum(int(features[name].sum()) for name in ("tiles", "frames") if name in features)
    found = bench.family.encode(bench.model.model, features, OneByOne(1, 2, told))
    for kind, seen in whole.items():
        for one, other in zip(seen, found[kind], strict=True):
            assert torch.allclose(one, other, atol=1e-6) and one.shape == other.shape
    kinds = [medium.kind for medium in unique]
    assert {kind: len(seen) for kind, seen in found.items()} == {kind: kinds.count(kind) for kind in set(kinds)}
