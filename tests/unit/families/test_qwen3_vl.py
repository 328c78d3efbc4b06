"""What Qwen3-VL alone has: DeepStack, and templates with and without markers around a video."""

from pathlib import Path

import pytest
import torch

from ral_system.data.chat import ChatRenderer
from ral_system.families.family import Family
from ral_system.media.store import MediaStore
from ral_system.media.videos import VideoLimits
from ral_system.models.loading import load_family, load_model
from ral_system.types import VideoSampling
from tests.unit.media.clips import clip, noise


@pytest.fixture(scope="module")
def qwen3(qwen3_folder: Path) -> Family:
    return load_family(qwen3_folder)


def test_the_projector_has_a_merger_for_each_depth(qwen3_folder: Path, qwen3: Family) -> None:
    model = load_model(qwen3_folder, dtype="float32")
    visual = model.model.visual
    assert qwen3.projector(model) == (visual.merger, visual.deepstack_merger_list[0])


@pytest.mark.parametrize("written", ["<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>"])
def test_markers_of_a_template_around_a_video_stay(qwen3_folder: Path, media: MediaStore, written: str) -> None:
    """As in transformers since 5.10; earlier versions dropped them, as a template without them also does."""
    family = load_family(qwen3_folder)
    usual = "<|vision_start|><|video_pad|><|vision_end|>"
    assert usual in family.processor.chat_template
    family.processor.chat_template = family.processor.chat_template.replace(usual, written)
    video = media.put_video(clip(noise(2, 2, 28, 56)), VideoSampling(1.0, 2, 2), VideoLimits())
    prompt = ChatRenderer(family, "").prompt(id="p", kind="", question="what ?", answer="", media=[video])
    expected = family.processor(
        text=[f"<|im_start|>user {written}what ?<|im_end|><|im_start|>assistant "],
        videos=[torch.zeros(2, 3, 28, 56, dtype=torch.uint8)],
        video_metadata=[{"fps": 1.0, "total_num_frames": 2, "frames_indices": [0, 1]}],
        videos_kwargs={"do_sample_frames": False, "do_resize": False},
    )
    assert list(prompt.token_ids) == list(expected["input_ids"][0])
    tokens = family.tokenizer.convert_ids_to_tokens(prompt.token_ids)
    assert tokens.count("<|vision_start|>") == (2 if written == usual else 1)


def test_what_no_layer_of_the_encoder_saw_adds_nothing(qwen3_folder: Path, qwen3: Family) -> None:
    """Text alone: a piece without tokens for its end and for each of its layers."""
    model = load_model(qwen3_folder, dtype="float32")
    encoded = qwen3.encode(model.model, {})
    ((whole, layer),) = encoded["image"]
    assert whole.shape == layer.shape == (0, 64)
    inputs = qwen3.inputs(encoded, ())["mm_encoder_outputs"]["image"]
    assert len(inputs.pooler_output) == len(inputs.deepstack_features) == 1
    ids = torch.tensor([[20, 21, 22]])
    with torch.no_grad():
        found = model(input_ids=ids, **qwen3.inputs(encoded, ())).logits
        assert torch.equal(found, model(input_ids=ids).logits)
