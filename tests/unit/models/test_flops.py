"""Counted operations against those that torch counts while a model runs, and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ral_system.attention.packing import PackedGroup, Packing
from ral_system.families.family import Family
from ral_system.models.flops import FlopCounter
from ral_system.models.loading import load_family, load_model
from ral_system.types import Layout, View

PACKING = Packing((PackedGroup(7, (3, 2)), PackedGroup(4, (5,))))


@pytest.fixture(scope="module")
def family(tiny_model: Path) -> Family:
    return load_family(tiny_model)


@pytest.mark.parametrize("name", ["qwen3_folder", "qwen3_5_folder", "glm4v_folder"])
def test_products_of_other_families_are_those_that_torch_counts(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    model, family = load_model(folder, dtype="float32"), load_family(folder)
    picture = Layout("image", (View(3, 2),))
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.model.get_image_features(torch.randn(24, 1176), torch.tensor([[1, 6, 4]]), return_dict=True)
    counter = FlopCounter(model, family)
    assert counter.vision([picture]) - family.vision_attention_flops(picture) == counted.get_total_flops()


def test_products_are_those_that_torch_counts(tiny_model: Path, family: Family) -> None:
    model = load_model(tiny_model, dtype="float32")
    counter = FlopCounter(model, family)
    picture = Layout("image", (View(3, 2),))
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.model.get_image_features(torch.randn(24, 1176), torch.tensor([[1, 6, 4]]), return_dict=True)
    assert counter.vision([picture]) - family.vision_attention_flops(picture) == counted.get_total_flops()
    ids = torch.full((1, PACKING.tokens), 5)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(input_ids=ids, packing=PACKING, position_ids=torch.zeros(3, 1, PACKING.tokens).long(), use_cache=False)
    text = model.config.get_text_config()
    # 7·8/2 of a prompt, its responses' own 3·4/2 and 2·3/2, and to the prompt 7·(3 + 2); of the other 4·5/2, 5·6/2, 4·5
    pairs = 28 + 6 + 3 + 35 + 10 + 15 + 20
    attention = 4 * text.num_hidden_layers * text.num_attention_heads * 32 * pairs
    assert text.hidden_size // text.num_attention_heads == 32
    assert counter.text(PACKING) - attention + counter.head(PACKING.tokens) == counted.get_total_flops()
    apart = Packing((PackedGroup(7, (3,)), PackedGroup(7, (2,)), PackedGroup(4, (5,))))
    assert counter.text(PACKING, shared=False) == counter.text(apart) > counter.text(PACKING)


def test_vision_attention_by_hand(family: Family) -> None:
    vision = family.config.vision_config
    view = View(9, 5)
    pairs = (9 * 5) ** 2 * 16  # of patches, four a token
    assert family.vision_attention_flops(Layout("image", (view,))) == 4 * vision.hidden_size * vision.depth * pairs
    assert (
        family.vision_attention_flops(Layout("video", (view, view)))
        == 2 * 4 * vision.hidden_size * vision.depth * pairs
    )


def test_windows_are_cut_off_at_the_edges(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = family.config.vision_config
    monkeypatch.setattr(vision, "fullatt_block_indexes", [])
    assert vision.window_size // 28 == 4  # tokens
    # of 9 × 5 tokens: windows 4, 4 and 1 high, 4 and 1 wide
    pairs = (16 + 16 + 1) * (16 + 1) * 16
    found = family.vision_attention_flops(Layout("image", (View(9, 5),)))
    assert found == 4 * vision.hidden_size * vision.depth * pairs
