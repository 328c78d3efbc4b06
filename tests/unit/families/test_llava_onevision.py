"""LLaVA-OneVision against transformers: text, pixels, places, log-probs, attention; what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ral_system.attention.evidence import covered
from ral_system.errors import ConfigError, DataError, SetupError
from ral_system.families.llava_onevision import LlavaOneVision
from ral_system.families.tiles import FrameBudget, ResolutionBudget
from ral_system.media.store import MediaStore
from ral_system.models.flops import FlopCounter
from ral_system.models.folders import check_engine_names
from ral_system.models.loading import load_family, load_model, save_model
from ral_system.models.policy import PolicyModel
from ral_system.tasks.visual_search import words
from ral_system.training.build import choose_trained
from ral_system.types import Layout, Media, Region, Sample, View
from tests.llava_onevision_model import RESOLUTIONS, TILE_PX, build_llava_onevision
from tests.unit.families.of_transformers import (
    Bench,
    check_generation_is_scored,
    check_packed_is_alone,
    check_places,
    check_shared_tiles,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llava_onevision")
    build_llava_onevision(path, words())
    return path


@pytest.fixture(scope="module")
def bench(folder: Path, media: MediaStore) -> Bench:
    return Bench(folder, media, [(84, 56), (42, 42), (61, 100)], videos=True)


def test_packed_questions_are_those_of_transformers(bench: Bench) -> None:
    check_packed_is_alone(bench)


def test_generation_has_the_log_probs_of_scoring(bench: Bench, make_config: Callable) -> None:
    check_generation_is_scored(bench, make_config)


def test_a_change_of_the_picture_changes_the_token_at_its_place(bench: Bench) -> None:
    check_places(bench, 84, 84)
    check_places(bench, 126, 60)
    check_places(bench, 50, 120)


def test_ranks_share_the_tiles(bench: Bench) -> None:
    check_shared_tiles(bench)


def test_text_and_pixels_are_the_processors(bench: Bench) -> None:
    """Forty random sizes, some of them reduced; pictures are given flat, as nested lists lose their tiles."""
    draw, family = np.random.default_rng(1), bench.family
    reduced = 0
    for i in range(40):
        width, height = draw.integers(8, 300, 2).tolist()
        medium = bench.picture(i, width, height)
        picture = bench.store.open(medium)
        inputs = family.processor(text=["<image>"], images=[picture], return_tensors="pt")
        expanded = family.tokenizer(family.expanded(medium), add_special_tokens=False)["input_ids"]
        assert inputs["input_ids"][0].tolist() == expanded == [family.visual_ids["image"]] * family.tokens(medium)
        (features,) = family.features([medium], [picture])
        assert torch.equal(features["pixel_values"], inputs["pixel_values"][0])
        layout = family.layout(medium)
        assert layout.patches == 9 * len(features["pixel_values"])
        reduced += layout.patches > 10 * 9 and layout.views[1].rows < 12 > layout.views[1].columns
    assert reduced > 3


def test_a_whole_view_and_rows_without_padding(bench: Bench) -> None:
    """84 × 42 px are two tiles beside each other; of 84 × 30 px, 3 rows with 42 - 30 px of padding, all are kept
    but where a whole row is padding.
    """
    assert bench.family.layout(Media("", 84, 42)) == Layout(
        "image", (View(3, 3), View(3, 6, line_end=True)), patches=3 * 9
    )
    narrow = bench.family.layout(Media("", 126, 42)).views[1]
    assert (narrow.rows, narrow.columns, narrow.tokens) == (3, 9, 30)
    thin = bench.family.layout(Media("", 126, 56)).views[1]  # 126 × 84 px, 6 rows for 4 that have pixels
    assert (thin.rows, thin.columns) == (4, 9) and thin.box == pytest.approx((0, 0, 1, 1))
    odd = bench.family.layout(Media("", 126, 70)).views[1]  # 5 rows of 6: none is all padding at both ends
    assert odd.rows == 6 and odd.box == pytest.approx((0, -0.1, 1, 1.1))


def test_a_video_ends_with_one_token_without_a_place(bench: Bench) -> None:
    video = bench.video(3, 3, 28, 56)
    assert video.clip is not None
    times = video.clip.times_s
    frames = [View(2, 2, i, time) for i, time in enumerate(times)]
    layout = bench.family.layout(video)
    assert layout == Layout("video", (*frames, View(1, 0, 2, times[-1], line_end=True)), patches=27)
    assert layout.tokens == 13 and layout.runs == (13,) and layout.finest_grid == (2, 2)
    whole = Region(0.0, 0.0, 1.0, 1.0)
    assert covered((whole,), (video,), (layout,)).tolist() == [1.0] * 12 + [0.0]
    (features,) = bench.family.features([video], [bench.store.frames(video)])
    assert features["pixel_values_videos"].shape == (3, 3, TILE_PX, TILE_PX)


def test_text_alone_runs_the_encoder_and_has_gradients_of_zero(folder: Path, bench: Bench) -> None:
    policy = PolicyModel(load_model(folder, dtype="float32"), bench.family, temperature=1.0)
    policy(bench.collate((Sample("s", bench.prompts[2], (3, 4)),))).log_probs.sum().backward()
    visual = dict(bench.family.vision_encoder(policy.model).named_parameters())
    for i, module in enumerate(bench.family.projector(policy.model)):
        visual |= {f"projector.{i}.{name}": parameter for name, parameter in module.named_parameters()}
    without = {name for name, parameter in visual.items() if parameter.grad is None}
    assert without == {"post_layernorm.weight", "post_layernorm.bias"}  # which nothing reads
    assert not any(parameter.grad.any() for parameter in visual.values() if parameter.grad is not None)


def test_the_end_of_line_is_frozen_with_vision(folder: Path, bench: Bench, make_config: Callable) -> None:
    policy = PolicyModel(load_model(folder, dtype="float32"), bench.family, temperature=1.0)
    config = make_config("model.freeze_vision=true")
    choose_trained(policy, config.model, config.learner)
    frozen = {name for name, parameter in policy.model.named_parameters() if not parameter.requires_grad}
    assert "model.image_newline" in frozen and all("language_model" not in name for name in frozen)


def test_operations_are_those_of_all_tiles(folder: Path, bench: Bench) -> None:
    counter, layout = FlopCounter(load_model(folder, dtype="float32"), bench.family), bench.family.layout
    vision, padded = bench.family.config.vision_config, layout(Media("", 126, 56))
    assert padded.patches == 7 * 9 and padded.tokens == 9 + 4 * 10
    attention = bench.family.vision_attention_flops(padded)
    assert attention == 4 * vision.hidden_size * 2 * 7 * 9**2
    by_patch = 2 * (3 * 14**2 * 64 + 2 * (4 * 64 * 64 + 2 * 64 * 96))
    assert counter.vision([padded]) == attention + by_patch * 7 * 9 + 2 * 2 * 64 * 64 * padded.tokens


def test_a_saved_model_has_the_names_that_the_engine_reads(folder: Path, bench: Bench, tmp_path: Path) -> None:
    model = load_model(folder, dtype="float32")
    save_model(model, model.state_dict(), bench.family.processor, tmp_path / "saved", folder)
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    names = LlavaOneVision.engine_names
    assert names.of("model.vision_tower.encoder.a") == "model.vision_tower.vision_model.encoder.a"
    assert names.of("model.vision_tower.post_layernorm.bias") is None and names.of("lm_head.weight") == "lm_head.weight"


def test_a_model_with_names_that_the_engine_does_not_know_is_one_line(folder: Path, tmp_path: Path) -> None:
    """As transformers saves one that it made: vLLM stops at `vision_tower.embeddings`, in a paragraph."""
    check_engine_names(folder, LlavaOneVision.engine_names)
    weights = load_file(folder / "model.safetensors")
    fresh = {name.replace("vision_tower.vision_model.", "vision_tower."): w for name, w in weights.items()}
    save_file(fresh, tmp_path / "model.safetensors")
    with pytest.raises(SetupError) as refused:
        check_engine_names(tmp_path, LlavaOneVision.engine_names)
    assert str(refused.value) == (
        f"model folder {tmp_path}: model.safetensors has vision_tower.embeddings.patch_embedding.bias, which vLLM "
        "knows as vision_tower.vision_model.embeddings.patch_embedding.bias; rename all vision_tower.… in the "
        "safetensors files, which transformers loads as well, or take the published model"
    )


# --- sizes ---


def test_a_size_is_one_that_the_processor_leaves_in_its_resolution(bench: Bench) -> None:
    sizes = tuple((height, width) for height, width in RESOLUTIONS)
    draw = np.random.default_rng(2)
    for width, height in draw.integers(1, 600, (300, 2)).tolist():
        for allowed in (sizes, sizes[:6]):
            wide, tall = ResolutionBudget(allowed, sizes).size(width, height)
            assert any(tall <= h and wide <= w and (tall == h or wide == w) for h, w in allowed)
            assert abs(wide - tall * width / height) <= max(1, width / height)
    with pytest.raises(DataError, match=r"^too long and thin: 924x123 px$"):
        ResolutionBudget(sizes[4:], sizes).size(924, 123)  # the processor would choose a single row of tiles


def test_bounds_of_pixels_choose_resolutions(bench: Bench, make_config: Callable) -> None:
    def budgets(least: int | None = None, most: int | None = None) -> Any:
        bounds = f"data.image={{min_pixels: {least or 'null'}, max_pixels: {most or 'null'}}}"
        base = ("data=video_r1", "data.sources.main.path=rows.json", "stages=[rl]")
        return bench.family.pixel_budgets(make_config(*base, bounds).data)

    area = TILE_PX**2
    assert bench.family.picture_bounds == (area, 16 * area) and bench.family.pixels_per_token == 14**2
    assert len(budgets()["image"].allowed) == 16 and type(budgets()["video"]) is FrameBudget
    assert budgets(2 * area, 3 * area)["image"].allowed == ((42, 84), (42, 126), (84, 42), (126, 42))
    with pytest.raises(ConfigError, match="allow no resolution of the model's processor, which has 1764 to 28224 pix"):
        budgets(2 * area + 1, 3 * area - 1)


# --- models that are refused ---


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("config.json", '"vision_feature_layer": -1', '"vision_feature_layer": -2', "vision_feature_layer=-2, "),
        ("processor_config.json", '"num_image_tokens": 9', '"num_image_tokens": 4', "num_image_tokens=4 in the proc"),
        ("processor_config.json", '"anyres_max_9"', '"anyres_max_4"', "vision_aspect_ratio=anyres_max_4 in the"),
    ],
)
def test_a_model_that_the_engine_would_read_otherwise_is_one_line(
    folder: Path, tmp_path: Path, file: str, old: str, new: str, why: str
) -> None:
    shutil.copytree(folder, tmp_path / "m")
    text = (tmp_path / "m" / file).read_text()
    assert old in text
    (tmp_path / "m" / file).write_text(text.replace(old, new))
    with pytest.raises(SetupError, match=why) as refused:
        load_family(tmp_path / "m")
    assert "\n" not in str(refused.value)


def test_the_family_is_found_by_its_type(folder: Path) -> None:
    assert type(load_family(folder)) is LlavaOneVision
