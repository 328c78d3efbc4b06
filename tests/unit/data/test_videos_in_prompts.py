"""Videos from the store to the model: tokens, features, positions, each against the slow way."""

import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ral_system.attention.provenance import KeyKind
from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.data.chat import ChatRenderer
from ral_system.errors import DataError
from ral_system.families.qwen_vl.positions import seconds_per_grid
from ral_system.media.images import ImageLimits
from ral_system.media.store import MediaStore
from ral_system.media.videos import VideoLimits
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.types import Clip, Media, Sample, VideoSampling
from tests.unit.media.clips import clip, noise

SAMPLING = VideoSampling(fps=1.0, max_frames=6, min_frames=2)


class Bench:
    def __init__(self, folder: Path, store: MediaStore) -> None:
        self.folder, self.store = folder, store
        self.family = load_family(folder)
        self.processor: Any = self.family.processor
        self.render, self.collate = ChatRenderer(self.family, "answer"), Collator(self.family, store)
        self.four = store.put_video(clip(noise(1, 4, 56, 84)), SAMPLING, VideoLimits())
        self.three = store.put_video(clip(noise(2, 30, 84, 56), fps=10), SAMPLING, VideoLimits())
        self.picture = store.put_image(png(noise(3, 1, 56, 56)[0]), ImageLimits())

    def sample(self, id: str, question: str, media: list[Media]) -> Sample:
        prompt = self.render.prompt(id=id, kind="k", question=question, answer="red", media=media)
        return Sample(id, prompt, self.render.response("<think> a1 red circle </think> <answer> red </answer>"))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def bench(tiny_model: Path, media: MediaStore) -> Bench:
    return Bench(tiny_model, media)


def test_a_video_is_its_sampled_frames(bench: Bench) -> None:
    assert bench.four.clip == Clip(SAMPLING, (0.0, 1.0, 2.0, 3.0), 4.0)
    assert np.array_equal(bench.store.frames(bench.four), np.stack(noise(1, 4, 56, 84)))
    assert bench.three.frames == 2 and bench.three.clip is not None
    assert bench.three.clip.times_s == pytest.approx((0.0, 2.9))
    assert np.array_equal(bench.store.frames(bench.three), np.stack(noise(2, 30, 84, 56))[[0, 29]])
    smaller = replace(bench.four, width_px=28, height_px=28)
    assert bench.store.frames(smaller).shape == (4, 28, 28, 3)


def test_seconds_per_grid_survive_any_precision() -> None:
    for duration, frames in ((4.0, 4), (3.0, 2), (10.07, 10), (7.3, 4), (0.0, 2), (3600.0, 128)):
        found = seconds_per_grid(Clip(SAMPLING, (0.0,) * frames, duration))
        assert found == float(torch.tensor(found).to(torch.bfloat16))
        assert found == pytest.approx(2 * duration / frames if duration else 2.0, rel=2**-8)


def test_prompts_hold_a_token_for_every_patch(bench: Bench) -> None:
    question = "what is <video> at a1 <image> and <video> ?"
    sample = bench.sample("s", question, [bench.four, bench.picture, bench.three])
    tokens = bench.processor.tokenizer.convert_ids_to_tokens(sample.prompt.token_ids)
    text = " ".join(tokens)
    four = "<|vision_start|> " + "<|video_pad|> " * 12 + "<|vision_end|>"
    picture = "<|vision_start|> " + "<|image_pad|> " * 4 + "<|vision_end|>"
    three = "<|vision_start|> " + "<|video_pad|> " * 6 + "<|vision_end|>"
    assert f"what is {four} at a1 {picture} <unk> {three} ?" in text
    blank = bench.render.prompt(
        id="b", kind="k", question="<image>\n<image>\nwhat ?", answer="", media=[bench.picture] * 2
    )
    asked = [blank.token_ids[i] for i in blank.question_positions]
    assert bench.processor.tokenizer.convert_ids_to_tokens(asked) == ["what", "?"]
    ((rows,),) = bench.collate((sample,)).rows["instruction"]
    read = [tokens[row] for row in rows.tolist()]
    assert read == ["what", "is", "at", "a1", "<unk>", "?"]  # neither media nor the markers around them
    with pytest.raises(ValueError, match="marks"):
        bench.sample("s", "what is <image> and <video> ?", [bench.four, bench.picture])


def test_an_engine_gets_one_placeholder_for_each_medium(bench: Bench) -> None:
    """The prompt's tokens with each run of visual ones collapsed, wherever its media stand."""
    visual = set(bench.family.visual_ids.values())
    for question, media in (
        ("what is <image> at a1 <video> and <image> ?", [bench.picture, bench.four, bench.picture]),
        ("what is at a1 ?", [bench.picture, bench.picture, bench.three]),
        ("what is at a1 ?", []),
    ):
        prompt = bench.sample("s", question, media).prompt
        runs = [(token, len(list(run))) for token, run in itertools.groupby(prompt.token_ids)]
        collapsed = [i for token, length in runs for i in ([token] if token in visual else [token] * length)]
        assert list(prompt.engine_token_ids) == collapsed
        assert len(prompt.token_ids) - len(collapsed) == sum(bench.family.tokens(medium) - 1 for medium in media)


def test_features_are_the_processors_and_one_medium_is_processed_once(bench: Bench) -> None:
    samples = (
        bench.sample("a", "what is at a1 ?", [bench.four, bench.picture]),
        bench.sample("b", "what is at a1 ?", []),
        bench.sample("c", "what is at a1 ?", [bench.three, bench.four]),
    )
    batch = bench.collate(samples)
    frames = [bench.store.frames(m) for m in (bench.four, bench.three)]
    expected = bench.processor.video_processor(
        videos=[torch.from_numpy(f.copy()).permute(0, 3, 1, 2) for f in frames],
        return_tensors="pt",
        do_sample_frames=False,
        do_resize=False,
    )
    assert torch.equal(batch.features["pixel_values_videos"], expected["pixel_values_videos"])
    assert batch.features["video_grid_thw"].tolist() == [[2, 4, 6], [1, 6, 4]]
    assert batch.features["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert batch.occurrences == (("video", 0), ("image", 0), ("video", 1), ("video", 0))
    videos = [[str(layout) for layout in of_sample if layout.kind == "video"] for of_sample in batch.layouts]
    assert videos == [["2 × 2 × 3"], [], ["1 × 3 × 2", "2 × 2 × 3"]]
    kinds = [keys.kind for keys in batch.keys.split(batch.packing.lengths)]
    assert [int((k == KeyKind.VIDEO).sum()) for k in kinds] == [12, 0, 18]
    assert [int((k == KeyKind.IMAGE).sum()) for k in kinds] == [4, 0, 0]


@torch.no_grad()
def test_a_sample_alone_is_what_it_is_among_others(bench: Bench) -> None:
    model = load_model(bench.folder, dtype="float32")
    policy = PolicyModel(model, bench.family, temperature=1.0)
    samples = (
        bench.sample("a", "what is at a1 ?", [bench.four]),
        bench.sample("b", "what is at a1 ?", []),
        bench.sample("c", "<video> where is the <image> 7 ?", [bench.three, bench.picture]),
        bench.sample("d", "what is at a1 ?", [bench.picture]),
    )
    together = policy(bench.collate(samples), [AttentionRead()])
    for i, sample in enumerate(samples):
        batch = bench.collate((sample,))
        alone = policy(batch, [AttentionRead()])
        assert (alone.log_probs[0] - together.log_probs[i]).abs().max() <= 3e-6
        by_transformers = model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids,
            **batch.features,
        ).logits[0]
        by_transformers[:, list(bench.family.banned_ids)] = -torch.inf
        at = torch.arange(len(sample.prompt.token_ids) - 1, sample.length - 1)
        expected = by_transformers.log_softmax(-1)[at, list(sample.response_token_ids)]
        assert (alone.log_probs[0] - expected).abs().max() <= 3e-6
    slower = replace(bench.four, clip=replace(bench.four.clip, duration_s=12.0))
    other = policy(bench.collate((bench.sample("a", "what is at a1 ?", [slower]),)))
    assert (other.log_probs[0] - together.log_probs[0]).abs().max() > 1e-3


def test_text_alone_uses_the_vision_encoder_and_learns_nothing_from_it(bench: Bench) -> None:
    model = load_model(bench.folder, dtype="float32")
    policy = PolicyModel(model, bench.family, temperature=1.0)
    calls = []
    model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    policy(bench.collate((bench.sample("b", "what is at a1 ?", []),))).log_probs.sum().backward()
    assert calls == [1]
    assert all(p.grad is not None and not p.grad.any() for p in model.model.visual.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.model.language_model.parameters())


def test_video_tokens_that_do_not_fit_are_noticed(bench: Bench) -> None:
    sample = bench.sample("s", "what ?", [bench.four])
    wrong = replace(sample, prompt=replace(sample.prompt, media=(bench.three,)))
    with pytest.raises(DataError, match="sample s has 12 video tokens, but its media make 6 video tokens"):
        bench.collate((wrong,))
