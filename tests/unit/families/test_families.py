"""The family of a model, a family's checks of prompts and models, and families from other packages."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from ral_system.errors import DataError, SetupError
from ral_system.families.family import joined, sized
from ral_system.families.glm4v import Glm4v
from ral_system.families.known import family_of, known_types
from ral_system.families.qwen3_vl import Qwen3Vl
from ral_system.families.qwen_vl.family import QwenVl
from ral_system.models.loading import load_family, load_model
from ral_system.registry import FAMILIES
from ral_system.types import Clip, Layout, Media, VideoSampling, View

PICTURE = Media("a" * 64, 84, 56)
VIDEO = Media("b" * 64, 56, 28, Clip(VideoSampling(1.0, 8, 2), (0.0, 1.0, 2.0, 3.0), 6.0))

# --- which family ---


@pytest.mark.parametrize("model_type", ["gpt2", "no_such_vl"])
def test_a_model_of_no_known_family_is_one_line(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(SetupError) as refused:
        load_family(tmp_path)
    assert str(refused.value) == (
        f"model {tmp_path}: model_type={model_type} belongs to no known family; choose one of "
        f"{', '.join(known_types())}, or add a family (docs/extending.md)"
    )
    assert {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"} <= set(known_types())


def test_each_type_has_its_family(tiny_model: Path) -> None:
    assert type(load_family(tiny_model)) is QwenVl is family_of("qwen2_vl", "m")
    assert family_of("qwen3_vl", "m") is Qwen3Vl
    assert family_of("glm4v", "m") is Glm4v


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write what pip leaves of a package `other_models` with one entry point."""

    def installed(target: str) -> None:
        (tmp_path / "other_models.py").write_text(
            "from ral_system.families.qwen_vl.family import QwenVl\n"
            "class OtherVl(QwenVl):\n"
            "    model_types = ('other_vl',)\n"
        )
        (tmp_path / "other_models-1.0.dist-info").mkdir()
        for name, text in (
            ("METADATA", "Metadata-Version: 2.1\nName: other-models\nVersion: 1.0\n"),
            ("entry_points.txt", f"[ral_system.families]\nother = {target}\n"),
        ):
            (tmp_path / "other_models-1.0.dist-info" / name).write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "other_models", raising=False)
        monkeypatch.delitem(vars(FAMILIES), "_added", raising=False)  # read the installed packages again

    return installed


def test_an_installed_package_adds_a_family(install: Callable[[str], None]) -> None:
    with pytest.raises(SetupError, match="model_type=other_vl belongs to no known family"):
        family_of("other_vl", "m")
    own = known_types()
    install("other_models:OtherVl")
    assert family_of("other_vl", "m").__name__ == "OtherVl"
    assert known_types() == sorted(["other_vl", *own])


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("nowhere_at_all:Vl", "No module named 'nowhere_at_all'"),
        ("other_models:Misspelt", "module 'other_models' has no attribute 'Misspelt'"),
    ],
)
def test_a_package_whose_family_cannot_be_imported_is_one_line(
    install: Callable[[str], None], target: str, why: str
) -> None:
    own = known_types()
    install(target)
    with pytest.raises(SetupError) as refused:
        family_of("other_vl", "start_model=/m")
    broken = f"model family 'other' is registered as {target}, which cannot be imported: {why}"
    assert str(refused.value).startswith(
        f"start_model=/m: model_type=other_vl belongs to no known family; choose one of {', '.join(own)}, or add a "
    )
    assert str(refused.value).endswith(f"; {broken}")
    assert family_of("qwen2_vl", "m") is QwenVl  # which has nothing to do with it


# --- checks of prompts ---


class Framed(QwenVl):
    """Frames of 1 × 2 tokens with a time stamp before each; pictures in two tiles with a line end after each row."""

    visual_ids = MappingProxyType({"image": 7, "video": 8})  # type: ignore[assignment]

    def __init__(self) -> None:
        pass

    def layout(self, media: Media) -> Layout:
        if media.clip is None:
            return Layout("image", (View(1, 1, line_end=True), View(1, 2, line_end=True)))
        return Layout("video", (View(1, 2, frame=0), View(1, 2, frame=1, seconds=3.0)), separated=True)


@pytest.mark.parametrize(
    ("token_ids", "problem"),
    [
        ([1, 8, 8, 2, 8, 8, 3, *[7] * 5, 4], None),
        ([8, 8, 2, 8, 8, 7, 7, 7, 7, 7], None),  # two kinds beside each other are two runs
        (
            [8, 8, 8, 8, 3, *[7] * 5],  # no time stamp between the frames
            "has 4 video tokens + 5 image tokens",
        ),
        ([8, 8, 2, 8, 3, *[7] * 5], "has 2 video tokens + 1 video tokens + 5 image tokens"),
        ([8, 8, 2, 8, 8, 3, 7, 7, 5, 7, 7, 7], "has 2 video tokens + 2 video tokens + 2 image tokens + 3 image tokens"),
        ([*[7] * 5, 3, 8, 8, 2, 8, 8], "has 5 image tokens + 2 video tokens + 2 video tokens"),  # not in their order
        ([1, 2, 3], "has none"),
    ],
)
def test_views_that_are_apart_are_runs_of_their_own(token_ids: list[int], problem: str | None) -> None:
    expected = ", but its media make 2 video tokens + 2 video tokens + 5 image tokens"
    assert Framed().problem(token_ids, (VIDEO, PICTURE)) == (problem + expected if problem else None)
    assert (Framed().tokens(VIDEO), Framed().tokens(PICTURE)) == (4, 5)


def test_kinds_may_share_a_token() -> None:
    class Shared(Framed):
        visual_ids = MappingProxyType({"image": 7, "video": 7})  # type: ignore[assignment]

    assert Shared().problem([7, 7, 2, 7, 7, 3, *[7] * 5], (VIDEO, PICTURE)) is None
    assert Shared().problem([7, 7], ()) == "has 2 image tokens, but its media make none"
    assert Shared().visual(torch.tensor([[7, 8], [1, 7]])).tolist() == [[True, False], [False, True]]


def test_the_layout_of_qwen_is_known_without_pixels(tiny_model: Path) -> None:
    """28 px a token; the processor of the tiny model makes a picture of 28 × 28 px 56 × 56; two frames are one view."""
    family = load_family(tiny_model)
    assert family.layout(PICTURE) == Layout("image", (View(2, 3),))
    assert family.layout(Media("c" * 64, 28, 28)) == Layout("image", (View(2, 2),))
    assert family.layout(VIDEO) == Layout("video", (View(1, 2, frame=0), View(1, 2, frame=1, seconds=3.0)))
    assert (family.tokens(PICTURE), family.tokens(VIDEO)) == (6, 4)
    assert str(family.layout(VIDEO)) == "2 × 1 × 2"
    assert family.frames_per_view == 2 and family.pixels_per_token == 28 * 28
    assert family.picture_bounds == (56 * 56, 28 * 28 * 1280)


def test_media_become_as_large_as_the_model_sees_them(tiny_model: Path, make_config: Callable) -> None:
    own = "data.image={min_pixels: null, max_pixels: null}"  # the processor's
    data = make_config("data=video_r1", "data.sources.main.path=rows.json", "stages=[rl]", own).data
    budgets = load_family(tiny_model).pixel_budgets(data)
    small = replace(PICTURE, width_px=40, height_px=40)
    assert sized(small, budgets) == replace(small, width_px=56, height_px=56)
    with pytest.raises(DataError, match="too long and thin: 9000x30 px"):
        sized(replace(PICTURE, width_px=9000, height_px=30), budgets)


def test_features_of_media_of_both_kinds_are_joined_under_their_names() -> None:
    parts = [{"a": torch.tensor([1])}, {"b": torch.tensor([2, 3]), "a": torch.tensor([4])}, {}]
    assert {name: tensor.tolist() for name, tensor in joined(parts).items()} == {"a": [1, 4], "b": [2, 3]}
    assert joined([]) == {}


def test_an_attention_class_it_does_not_know_is_refused_by_name(tiny_model: Path) -> None:
    model, family = load_model(tiny_model, dtype="float32"), load_family(tiny_model)
    layers = [layer.self_attn for layer in model.get_decoder().layers]
    assert family.attention_layers(model) == layers
    layers[-1].__class__ = type("OtherAttention", (type(layers[-1]),), {})
    with pytest.raises(ValueError, match="does not know OtherAttention; known: Qwen2VLAttention"):
        family.attention_layers(model)


def test_the_projector_is_the_merger(tiny_model: Path) -> None:
    model, family = load_model(tiny_model, dtype="float32"), load_family(tiny_model)
    assert family.vision_encoder(model) is model.model.visual
    assert family.projector(model) == (model.model.visual.merger,)
