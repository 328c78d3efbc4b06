"""InternVL3 against transformers: text, pixels, positions, log-probs, attention; what is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ral_system.attention.evidence import times_of
from ral_system.config.commands import PlanCommandConfig
from ral_system.data.chat import ChatRenderer
from ral_system.errors import ConfigError, DataError, SetupError
from ral_system.families.internvl import InternVl
from ral_system.families.tiles import FrameBudget, TileBudget, tile_grid
from ral_system.media.store import MediaStore
from ral_system.models.flops import FlopCounter
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.planning.workload import largest_medium
from ral_system.tasks.video_search_prompts import VideoSearchQuestions
from ral_system.tasks.visual_search import words
from ral_system.types import Layout, Media, Sample, View
from tests.composed import compose_config
from tests.internvl_model import TILE_PX, build_internvl
from tests.unit.families.of_transformers import (
    Bench,
    check_generation_is_scored,
    check_packed_is_alone,
    check_places,
    check_shared_tiles,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("internvl")
    build_internvl(path, words())
    return path


@pytest.fixture(scope="module")
def bench(folder: Path, media: MediaStore) -> Bench:
    return Bench(folder, media, [(84, 56), (28, 28), (61, 100)], videos=True)


def test_packed_questions_are_those_of_transformers(bench: Bench) -> None:
    check_packed_is_alone(bench)


def test_qwen3_as_text_model(tmp_path: Path, media: MediaStore) -> None:
    """InternVL3.5."""
    build_internvl(tmp_path, words(), text="qwen3")
    check_packed_is_alone(Bench(tmp_path, media, [(84, 56), (28, 28)]))


def test_generation_has_the_log_probs_of_scoring(bench: Bench, make_config: Callable) -> None:
    check_generation_is_scored(bench, make_config)


def test_a_change_of_the_picture_changes_the_token_at_its_place(bench: Bench) -> None:
    check_places(bench, 84, 56)
    check_places(bench, 50, 120)


def test_text_and_pixels_are_the_processors(bench: Bench) -> None:
    """Thirty random sizes; the expanded text has as many tokens as the layout."""
    draw, family = np.random.default_rng(1), bench.family
    for i in range(30):
        width, height = draw.integers(8, 300, 2).tolist()
        medium = bench.picture(i, width, height)
        inputs = family.processor(text=["<IMG_CONTEXT>"], images=[bench.store.open(medium)], return_tensors="pt")
        expanded = family.tokenizer(family.expanded(medium), add_special_tokens=False)["input_ids"]
        assert inputs["input_ids"][0].tolist() == expanded
        assert expanded.count(family.visual_ids["image"]) == family.tokens(medium) == 4 * len(inputs["pixel_values"])
        features = bench.collate((sample(bench, medium),)).features
        assert torch.equal(features["pixel_values"], inputs["pixel_values"])
        assert features["tiles"].tolist() == [[len(inputs["pixel_values"])]]


def sample(bench: Bench, medium: Media) -> Sample:
    ids = tuple(bench.family.tokenizer(bench.family.expanded(medium), add_special_tokens=False)["input_ids"])
    return Sample("s", replace(bench.prompts[0], token_ids=ids, media=(medium,)), (3,))


def test_tiles_go_row_by_row_and_a_thumbnail_follows(bench: Bench) -> None:
    assert bench.family.layout(Media("", 28, 28)) == Layout("image", (View(2, 2),))
    assert bench.family.layout(Media("", 56, 56)) == Layout(
        "image",
        (
            View(2, 2, box=(0.0, 0.0, 0.5, 0.5)),
            View(2, 2, box=(0.5, 0.0, 1.0, 0.5)),
            View(2, 2, box=(0.0, 0.5, 0.5, 1.0)),
            View(2, 2, box=(0.5, 0.5, 1.0, 1.0)),
            View(2, 2),
        ),
    )
    assert str(bench.family.layout(Media("", 56, 28))) == "3 × 2 × 2"


def test_each_frame_of_a_video_is_a_tile_with_its_number(bench: Bench) -> None:
    video = bench.video(3, 3, 28, 56)
    assert video.clip is not None and bench.family.frames_per_view == 1
    views = tuple(View(2, 2, i, time) for i, time in enumerate(video.clip.times_s))
    assert bench.family.layout(video) == Layout("video", views, separated=True)
    frame = f"<img>{'<IMG_CONTEXT>' * 4}</img>"
    assert bench.family.expanded(video) == f"Frame1: {frame}\nFrame2: {frame}\nFrame3: {frame}"
    (features,) = bench.family.features([video], [bench.store.frames(video)])
    assert features["pixel_values_videos"].shape == (3, 3, TILE_PX, TILE_PX) and features["frames"].tolist() == [[3]]


def test_what_the_engine_reports_of_a_video_is_read_as_visual_tokens(bench: Bench) -> None:
    start, end, visual, video = bench.family.tokenizer.convert_tokens_to_ids(
        ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    )
    assert bench.family.seen_ids([5, start, video, video, end, start, visual, end]) == (
        *(5, start, visual, visual, end, start, visual, end),
    )
    assert set(bench.family.banned_ids) == {start, end, visual, video}


def test_text_alone_runs_the_encoder_and_has_gradients_of_zero(folder: Path, bench: Bench) -> None:
    policy = PolicyModel(load_model(folder, dtype="float32"), bench.family, temperature=1.0)
    batch = bench.collate((Sample("s", bench.prompts[2], (3, 4)),))
    policy(batch).log_probs.sum().backward()
    visual = [*bench.family.vision_encoder(policy.model).parameters()]
    visual += [p for module in bench.family.projector(policy.model) for p in module.parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in visual if p.requires_grad)
    assert any(p.grad is not None and p.grad.any() for p in policy.model.get_decoder().parameters())


def test_ranks_share_the_tiles(bench: Bench) -> None:
    check_shared_tiles(bench)


def test_operations_of_the_encoder_are_those_that_torch_counts(folder: Path, bench: Bench) -> None:
    """All products but those of the class token, which is 1 of 17 here and 1 of 1025 in the published models."""
    model, layout = load_model(folder, dtype="float32"), bench.family.layout(Media("", 56, 28))
    counter = FlopCounter(model, bench.family)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.model.get_image_features(torch.randn(3, 3, TILE_PX, TILE_PX), return_dict=True)
    vision = bench.family.config.vision_config
    assert bench.family.vision_attention_flops(layout) == 4 * vision.hidden_size * 2 * 3 * 17**2
    of_a_patch = 2 * 2 * (4 * 64 * 64 + 2 * 64 * 96)  # two layers
    assert counter.vision([layout]) - bench.family.vision_attention_flops(layout) == (
        counted.get_total_flops() - 3 * of_a_patch
    )


# --- sizes ---


def test_a_size_is_one_that_the_processor_leaves_alone() -> None:
    """With up to 12 tiles every grid is; with 16 a picture of 3 × 3 tiles is cut into 4 × 4."""
    for width, height in np.random.default_rng(2).integers(1, 3000, (200, 2)).tolist():
        budget = TileBudget(448, 1, 12, (1, 12))
        wide, tall = budget.size(width, height)
        assert tile_grid(wide, tall, 448, 1, 12) == (wide // 448, tall // 448) == tile_grid(width, height, 448, 1, 12)
    assert TileBudget(448, 1, 16, (1, 16)).size(1344, 1344) == (1792, 1792)
    with pytest.raises(DataError, match="1344x1344 px: the model's processor makes 16 tiles of it, where 1 to 9 are"):
        TileBudget(448, 1, 9, (1, 16)).size(1344, 1344)
    assert TileBudget(448, 1, 4, (1, 12)).size(3000, 3000) == (896, 896)


def test_bounds_of_pixels_are_whole_tiles(bench: Bench, make_config: Callable) -> None:
    def budgets(least: int | None = None, most: int | None = None) -> Any:
        bounds = f"data.image={{min_pixels: {least or 'null'}, max_pixels: {most or 'null'}}}"
        video = "data.video={fps: 1.0, max_frames: 8, min_frames: 4, min_pixels: 500, max_pixels: 1000}"
        base = ("data=video_r1", "data.sources.main.path=rows.json", "stages=[rl]", video)
        return bench.family.pixel_budgets(make_config(*base, bounds).data)

    assert bench.family.picture_bounds == (784, 12 * 784) and bench.family.pixels_per_token == 196
    assert budgets()["image"] == TileBudget(28, 1, 12, (1, 12))
    assert budgets(1000, 5000)["image"] == TileBudget(28, 2, 6, (1, 12))
    assert budgets()["video"].size(640, 480) == (28, 28)
    with pytest.raises(ConfigError, match=r"data.image.max_pixels=100 is outside .* allows, 784 to 9408 pixels"):
        budgets(most=100)
    with pytest.raises(ConfigError, match="no whole number of tiles of 784 pixels lies between"):
        budgets(1000, 1100)


@pytest.mark.parametrize(("bounds", "name"), [((1000, 2000), "min_pixels=1000"), ((1, 500), "max_pixels=500")])
def test_frames_have_one_size(bounds: tuple[int, int], name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^data.video.{name}: the model sees every frame in 28x28 px; set it to 784$"
    ):
        FrameBudget(28, bounds).size(640, 480)


def test_only_a_plan_with_videos_asks_for_frames_that_the_model_has(bench: Bench) -> None:
    settings = (
        *("data=video_r1", "data.sources.main.path=rows.json", "stages=[rl]"),
        *("data.image={min_pixels: null, max_pixels: null}", "data.video.max_pixels=500", "data.video.min_pixels=1"),
    )
    config = compose_config(*settings, kind=PlanCommandConfig)
    picture = largest_medium(config.data, config.plan.model_copy(update={"medium": "image"}), bench.family)
    assert picture is not None and str(bench.family.layout(picture)) == "9 × 2 × 2"  # 2 × 4 tiles, whose shape it has
    with pytest.raises(ConfigError, match=r"^data\.video\.max_pixels=500: the model sees every frame in 28x28 px"):
        largest_medium(config.data, config.plan, bench.family)


def test_generated_videos_have_a_view_for_every_frame(bench: Bench, make_config: Callable) -> None:
    data = make_config("data=video_search", "data.max_frames=4").data
    prompt = VideoSearchQuestions(data, ChatRenderer(bench.family, "answer"), bench.store).question("train", 0)
    (video,) = prompt.media
    assert video.clip is not None and video.clip.sampling.step == 1
    views = bench.family.layout(video).views
    assert [times_of(view, video) for view in views] == [(time,) for time in video.clip.times_s]


# --- models that are refused ---


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("config.json", '"vision_feature_layer": -1', '"vision_feature_layer": -2', "vision_feature_layer=-2 and"),
        (
            "processor_config.json",
            '"image_seq_length": 4',
            '"image_seq_length": 9',
            "makes 4 tokens of a tile of 28x28",
        ),
        ("processor_config.json", '"height": 28', '"height": 56', "copy the model again"),
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
    assert type(load_family(folder)) is InternVl
