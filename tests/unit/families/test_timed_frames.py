"""Families whose videos are pictures with times between them: text, pixels, positions and log-probs by transformers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ral_system.attention.evidence import covered
from ral_system.attention.policy import dense_policy
from ral_system.attention.provenance import KeyKind
from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.data.chat import ChatRenderer
from ral_system.media.blinding import MaskedMedia
from ral_system.media.store import MediaStore
from ral_system.media.videos import VideoLimits
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.rollout.hf_generator import HfEngine
from ral_system.types import Layout, Media, Region, Sample, Sampling, VideoSampling, View
from tests.unit.eager import eager_attentions, media_inputs, token_types
from tests.unit.media.clips import clip, noise

SAMPLING = VideoSampling(fps=1.0, max_frames=6, min_frames=2)
CONTENTS = {
    "text": ("what is at a1 ?", ""),
    "picture": ("what is at a1 ?", "p"),
    "pictures": ("what is <image> and <image> at a1 ?", "qp"),
    "video": ("what is at a1 ?", "v"),
    "short video": ("what <video> is at a1 ?", "w"),
}
MIXED = {"picture and video": ("what is <image> at a1 <video> ?", "pv"), "other way": ("<video> where <image> ?", "wq")}


class Bench:
    """A model of a family, and samples about noise."""

    def __init__(self, folder: Path, store: MediaStore) -> None:
        self.folder, self.store, self.family = folder, store, load_family(folder)
        self.processor: Any = self.family.processor
        self.render, self.collate = ChatRenderer(self.family, "answer"), Collator(self.family, store)
        uneven = store.put_video(clip(noise(1, 6, 56, 84)), SAMPLING, VideoLimits())
        assert uneven.clip is not None
        times_s = (0.0, 0.9, 2.3, 3.0, 10.6, 12.75)
        self.media = {
            "p": store.put(Image.fromarray(noise(3, 1, 84, 56)[0])),
            "q": store.put(Image.fromarray(noise(4, 1, 56, 112)[0])),
            "v": replace(uneven, clip=replace(uneven.clip, times_s=times_s)),
            "w": store.put_video(clip(noise(2, 2, 84, 56)), SAMPLING, VideoLimits()),
        }
        self.samples = [self.sample(name, *of) for name, of in CONTENTS.items()]

    def sample(self, id: str, question: str, media: str) -> Sample:
        of_prompt = [self.media[name] for name in media]
        prompt = self.render.prompt(id=id, kind="k", question=question, answer="red", media=of_prompt)
        return Sample(id, prompt, self.render.response("<think> a1 red circle </think> <answer> red </answer>"))

    def by_the_processor(self, media: tuple[Media, ...], question: str) -> Any:
        """Process media and a question with transformers."""
        pictures = [self.store.open(m) for m in media if m.clip is None]
        videos = [m for m in media if m.clip is not None]
        content = [*({"type": m.kind} for m in media), {"type": "text", "text": question}]
        messages = [{"role": "system", "content": "answer"}, {"role": "user", "content": content}]
        return self.processor(
            text=[self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)],
            images=pictures or None,
            videos=[torch.from_numpy(self.store.frames(m).copy()).permute(0, 3, 1, 2) for m in videos] or None,
            video_metadata=[
                {"fps": 1.0, "total_num_frames": m.frames, "frames_indices": list(m.clip.times_s)} for m in videos
            ]
            or None,
            videos_kwargs={"do_sample_frames": False, "do_resize": False},
            return_tensors="pt",
        )


@pytest.fixture(scope="module", params=["qwen3_folder", "qwen3_5_folder", "glm4v_folder"])
def bench(request: pytest.FixtureRequest, media: MediaStore) -> Bench:
    return Bench(request.getfixturevalue(request.param), media)


@pytest.mark.parametrize("chosen", ["", "p", "qp", "v", "w", "pv", "wqp"])
def test_prompts_pixels_and_positions_are_those_of_transformers(bench: Bench, chosen: str) -> None:
    sample = bench.sample("s", "what is at a1 ?", chosen)
    expected = bench.by_the_processor(sample.prompt.media, "what is at a1 ?")
    ids = expected["input_ids"]
    assert list(sample.prompt.token_ids) == ids[0].tolist()
    batch = bench.collate((sample,))
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        assert (name in batch.features) == (name in expected)
        assert name not in expected or torch.equal(batch.features[name], expected[name])
    prompt = len(sample.prompt.token_ids)
    types = expected["mm_token_type_ids"]
    assert token_types(batch)[:prompt].tolist() == types[0].tolist()
    grids = {name: expected[name] for name in ("image_grid_thw", "video_grid_thw") if name in expected}
    model = load_model(bench.folder, dtype="float32")
    positions, _ = model.model.get_rope_index(ids, types, **grids)
    assert torch.equal(batch.position_ids[:, 0, :prompt], positions[:, 0])
    assert batch.position_ids[:, 0, prompt].tolist() == [int(positions.max()) + 1] * 3


def test_a_video_is_a_run_of_tokens_for_each_two_frames(bench: Bench) -> None:
    layout = bench.family.layout(bench.media["v"])
    glm = bench.family.config.model_type == "glm4v"
    seconds = (0.0, 2.3, 10.6) if glm else (0.45, 2.65, 11.675)
    assert layout == Layout("video", tuple(View(2, 3, i, s) for i, s in enumerate(seconds)), separated=True)
    assert layout.runs == (6, 6, 6) and str(layout) == "3 × 2 × 3"
    sample = bench.sample("s", *CONTENTS["video"])
    keys = bench.collate((sample,)).keys
    video = keys.kind == KeyKind.VIDEO
    assert keys.frame[video].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert set(keys.frame[~video].tolist()) == {-1}
    tokens = bench.processor.tokenizer.convert_ids_to_tokens(sample.prompt.token_ids)
    text = "".join(tokens).replace("Ġ", "")
    stamps = ["|>0<|", "|>2<|", "|>10<|"] if glm else ["<0.5seconds>", "<2.6seconds>", "<11.7seconds>"]
    places = [text.index(stamp) for stamp in stamps]
    assert places == sorted(places)
    asked = "".join(tokens[i] for i in sample.prompt.question_positions)
    assert asked.replace("Ġ", "") == "whatisata1?"  # no times


def test_an_engine_gets_one_placeholder_for_each_medium(bench: Bench) -> None:
    placeholders = [bench.processor.tokenizer.convert_tokens_to_ids(t) for t in bench.family.placeholders.values()]
    for name, media in MIXED.items():
        sample = bench.sample(name, *media)
        found = [token for token in sample.prompt.engine_token_ids if token in placeholders]
        assert found == [placeholders[m.clip is not None] for m in sample.prompt.media]


def test_evidence_and_black_parts_of_a_video_are_at_its_frames(bench: Bench) -> None:
    """The second two frames show it, in their left third; and there alone pixels change."""
    video = bench.media["v"]
    layout = bench.family.layout(video)
    region = Region(0.0, 0.0, 1 / 3, 1.0, medium=0, start_s=2.0, end_s=4.0)
    shares = covered((region,), (video,), (layout,)).reshape(3, 2, 3)
    expected = torch.zeros(3, 2, 3)
    expected[1, :, 0] = 1
    assert torch.equal(shares, expected)
    black = MaskedMedia.of(video, expected.numpy().astype(bool), frames_per_view=bench.family.frames_per_view)
    pixels = [bench.store.frames(m) for m in (video, black)]
    whole, painted = (bench.family.features([video], [of])[0]["pixel_values_videos"] for of in pixels)
    changed = (whole != painted).any(-1).reshape(-1, 4).any(-1)  # four patches a token, in the tokens' order
    assert torch.equal(changed, expected.flatten().bool())


def test_packed_sequences_have_transformers_log_probs_and_attention(bench: Bench) -> None:
    model, read = load_model(bench.folder, dtype="float32"), AttentionRead(layers="all")
    samples = tuple(bench.samples)
    with torch.no_grad():
        output = PolicyModel(model, bench.family, temperature=1.0)(bench.collate(samples), [read])
    model.set_attn_implementation("eager")
    for i, one in enumerate(samples):
        alone, prompt = bench.collate((one,)), len(one.prompt.token_ids)
        with torch.no_grad():
            logits = model(input_ids=alone.input_ids[None], **media_inputs(alone)).logits[0, prompt - 1 : -1]
            attentions = eager_attentions(model, alone)
        logits[:, list(bench.family.banned_ids)] = -torch.inf
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(one.response_token_ids)[:, None])[:, 0]
        assert torch.allclose(output.log_probs[i, : len(expected)], expected, atol=2e-5), one.id
        for layer, attention in zip(output.attention[read][i].layers, attentions, strict=True):
            rows = torch.arange(prompt, one.length)
            found = dense_policy(layer.query, layer.key, rows, layer.scale, None, None, "mean")
            others = attention[0].mean(0).tril(-1)[rows]
            assert torch.allclose(found, others / others.sum(-1, keepdim=True), atol=3e-6), one.id


def test_media_and_their_times_are_seen(bench: Bench) -> None:
    """Whatever a test compares, other pixels or other times would have been noticed."""
    policy = PolicyModel(load_model(bench.folder, dtype="float32"), bench.family, temperature=1.0)
    sample = bench.sample("s", "what is at a1 ?", "v")
    video = bench.media["v"]
    later = replace(video, clip=replace(video.clip, times_s=(0.0, 4.0, 8.0, 9.0, 20.0, 21.0)))
    black = MaskedMedia.of(video, np.ones((3, 2, 3), bool), frames_per_view=2)
    render = bench.render.prompt
    others = [render(id="s", kind="", question="what is at a1 ?", answer="", media=[m]) for m in (later, black)]
    with torch.no_grad():
        log_probs = [policy(bench.collate((replace(sample, prompt=p),))).log_probs for p in (sample.prompt, *others)]
    assert all((log_probs[0] - other).abs().max() > 1e-2 for other in log_probs[1:])


def test_sequences_with_both_kinds_are_what_they_are_alone(bench: Bench) -> None:
    policy = PolicyModel(load_model(bench.folder, dtype="float32"), bench.family, temperature=1.0)
    mixed = [bench.sample(name, *of) for name, of in MIXED.items()]
    samples = (mixed[0], *bench.samples, mixed[1])
    with torch.no_grad():
        together = policy(bench.collate(samples)).log_probs
        for i, sample in enumerate(samples):
            alone = policy(bench.collate((sample,))).log_probs[0]
            assert torch.allclose(together[i, : len(alone)], alone, atol=1e-5), sample.id


def test_text_alone_uses_the_encoder_and_learns_nothing_from_it(bench: Bench) -> None:
    """A rank without media takes part in what the others gather and reduce, with gradients of 0."""
    model = load_model(bench.folder, dtype="float32")
    policy, calls = PolicyModel(model, bench.family, temperature=1.0), []
    model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    policy(bench.collate((bench.samples[0],))).log_probs.sum().backward()
    assert calls == [1]
    assert all(p.grad is not None and not p.grad.any() for p in model.model.visual.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.model.language_model.parameters())


def test_generated_tokens_have_the_log_probs_of_scoring(bench: Bench, make_config: Callable) -> None:
    """Prompts of several lengths in one batch, one of them without media."""
    prompts = [sample.prompt for sample in bench.samples]
    prompts += [bench.sample(name, *of).prompt for name, of in MIXED.items()]
    engine = HfEngine(bench.folder, make_config().rollout, bench.store, seed=0)
    found = list(engine.generate(prompts, Sampling(completions=2, temperature=1.0, max_new_tokens=6, seed=5)))
    assert len(found) == 2 * len(prompts)
    policy = PolicyModel(load_model(bench.folder, dtype="float32"), bench.family, temperature=1.0)
    of = {prompt.id: prompt for prompt in prompts}
    for completion in found:
        batch = bench.collate((Sample(completion.id, of[completion.prompt_id], completion.token_ids),))
        with torch.no_grad():
            scored = policy(batch).log_probs[0].tolist()
        assert scored == pytest.approx(completion.log_probs, abs=2e-5)
