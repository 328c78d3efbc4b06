import math

import pytest
import torch

from ral_system.attention.metrics import STATISTICS, row_statistics, visual_maps
from ral_system.attention.provenance import key_provenance
from ral_system.types import Layout, View

CELL = Layout("image", (View(1, 1),))

KEYS = key_provenance(
    torch.tensor([0, 0, 1, 1, 0, 1, 1, 0, 0]).bool(),
    [CELL, CELL, Layout("video", (View(1, 1, frame=0), View(1, 1, frame=1)))],
    system_tokens=2,
    prompt_tokens=8,
)  # system ×2, image 0, image 1, text, frame 0, frame 1, text, generated
ROW = [0.1, 0.1, 0.2, 0.05, 0.15, 0.1, 0.1, 0.05, 0.15]


def test_by_hand() -> None:
    found = row_statistics(torch.tensor([ROW, [0.0] * 9], dtype=torch.float64), KEYS)
    expected = {
        "visual_mass": 0.45,
        "system_mass": 0.2,
        "text_mass": 0.2,
        "generated_mass": 0.15,
        "sink_mass": 0.45,
        "vas": 0.45 / (0.2 + 1e-6),
        "entropy": -sum(p * math.log(p) for p in ROW),
        "image_0_mass": 0.2,
        "image_1_mass": 0.05,
        "frame_0_mass": 0.1,
        "frame_1_mass": 0.1,
    }
    assert {name: values.tolist() for name, values in found.items()} == {
        name: pytest.approx([value, 0.0]) for name, value in expected.items()
    }
    assert set(found) <= set(STATISTICS)


def test_without_a_system_turn_there_is_no_visual_attention_score() -> None:
    keys = key_provenance(torch.tensor([1, 0]).bool(), [CELL], system_tokens=0, prompt_tokens=2)
    found = row_statistics(torch.tensor([[0.9, 0.1]]), keys)
    assert "vas" not in found and found["system_mass"].tolist() == [0.0]


def test_masses_add_up_to_one() -> None:
    policy = torch.rand(5, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = row_statistics(policy, KEYS)
    total = sum(found[name] for name in ("visual_mass", "system_mass", "text_mass", "generated_mass"))
    assert torch.allclose(total, torch.ones(5))


def test_maps_have_the_shape_of_their_media() -> None:
    keys = key_provenance(
        torch.tensor([1, 1, 0, 1, 1, 1, 1]).bool(),
        [Layout("image", (View(2, 1),)), Layout("video", (View(1, 2, frame=0), View(1, 2, frame=1)))],
        system_tokens=0,
        prompt_tokens=7,
    )
    image, video = visual_maps(torch.arange(7), keys)
    assert image.tolist() == [[[0], [1]]]
    assert video.tolist() == [[[3, 4]], [[5, 6]]]
    assert visual_maps(torch.ones(1), key_provenance(torch.zeros(1).bool(), [], system_tokens=0, prompt_tokens=1)) == []
