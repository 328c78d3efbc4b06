"""What GLM-4.1V alone has: one token for all media, bounds that count two frames, biases that vLLM must know of."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ral_system.data.chat import ChatRenderer
from ral_system.errors import DataError
from ral_system.families.family import Family
from ral_system.families.glm4v import Glm4vPixelBudget
from ral_system.models.loading import load_family, load_model
from ral_system.types import Clip, Media, VideoSampling

VIDEO = Media("b" * 64, 56, 28, Clip(VideoSampling(1.0, 8, 2), (0.0, 1.0, 2.0, 3.0), 4.0))


@pytest.fixture(scope="module")
def glm(glm4v_folder: Path) -> Family:
    return load_family(glm4v_folder)


def test_all_that_stands_for_media_or_encloses_them_is_banned(glm: Family) -> None:
    enclosing = {f"<|{place}_of_{kind}|>" for place in ("begin", "end") for kind in ("image", "video")}
    assert set(glm.tokenizer.convert_ids_to_tokens(list(glm.banned_ids))) == {"<|image|>", "<|video|>"} | enclosing
    assert glm.visual_ids["image"] == glm.visual_ids["video"]
    assert not glm.visual(torch.tensor([glm.config.video_token_id])).any()


def test_one_video_is_taken(glm: Family) -> None:
    with pytest.raises(ValueError, match=r"^prompt p: 2 videos; at most 1 are supported$"):
        ChatRenderer(glm, "").prompt(id="p", kind="", question="what ?", answer="", media=[VIDEO] * 2)


@given(st.integers(1, 900), st.integers(1, 900))
def test_pictures_are_as_large_as_the_processor_makes_them(glm: Family, width: int, height: int) -> None:
    images = glm.processor.image_processor
    try:
        patches = images.get_number_of_image_patches(height, width)
    except ValueError:
        with pytest.raises(DataError, match=f"too long and thin: {width}x{height} px"):
            glm.layout(Media("a" * 64, width, height))
        return
    assert glm.tokens(Media("a" * 64, width, height)) == patches // 4


def test_bounds_are_of_pictures_and_not_of_their_two_frames(glm: Family) -> None:
    assert glm.picture_bounds == (56 * 56, 28 * 28 * 1280)
    budget = Glm4vPixelBudget(28, 28 * 28, 28 * 28 * 4)
    assert budget.size(56, 56) == (56, 56)
    assert budget.size(112, 112) == (56, 56)
    assert budget.size(10, 28) == (28, 84)  # enlarged to a side of 28 first


def test_the_projector_is_the_convolution_and_the_merger(glm4v_folder: Path, glm: Family) -> None:
    model = load_model(glm4v_folder, dtype="float32")
    assert glm.projector(model) == (model.model.visual.downsample, model.model.visual.merger)


def test_vllm_is_told_of_the_biases(glm4v_folder: Path, glm: Family) -> None:
    """A configuration that transformers wrote does not name them, and its model has them."""
    assert not hasattr(glm.config.text_config, "attention_bias")
    names = [name for name, _ in load_model(glm4v_folder, dtype="float32").named_parameters()]
    assert "model.language_model.layers.0.self_attn.k_proj.bias" in names
    assert glm.engine_arguments()["hf_overrides"] == {"text_config": {"attention_bias": True}}
