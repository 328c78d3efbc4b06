import math

import numpy as np
import pytest
import torch

from ral_system.attention.metrics import STATISTICS, decay, row_statistics, visual_maps
from ral_system.attention.provenance import KeyProvenance, key_provenance
from ral_system.types import Layout, View

CELL = Layout("image", (View(1, 1),))


def keys_with_evidence(evidence: torch.Tensor | None) -> KeyProvenance:
    """System ×2, image 0, image 1, text, frame 0, frame 1, text, generated."""
    return key_provenance(
        torch.tensor([0, 0, 1, 1, 0, 1, 1, 0, 0]).bool(),
        [CELL, CELL, Layout("video", (View(1, 1, frame=0), View(1, 1, frame=1)))],
        system_tokens=2,
        prompt_tokens=8,
        evidence=evidence,
    )


KEYS = keys_with_evidence(None)
VISUAL = [0.2, 0.05, 0.1, 0.1]
"""What of `ROW` is on visual keys."""
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
        "visual_entropy": -sum(p / 0.45 * math.log(p / 0.45) for p in VISUAL),
        "image_0_mass": 0.2,
        "image_1_mass": 0.05,
        "frame_0_mass": 0.1,
        "frame_1_mass": 0.1,
    }
    assert {name: values.tolist() for name, values in found.items()} == {
        name: pytest.approx([value, 0.0]) for name, value in expected.items()
    }
    assert set(found) <= set(STATISTICS)


def test_a_row_that_looks_at_all_visual_keys_alike_has_the_entropy_ln_n() -> None:
    alike = [0.9, 0, 0.01, 0.01, 0.06, 0.01, 0.01, 0, 0]
    one = [0.9, 0, 0.04, 0, 0.06, 0, 0, 0, 0]
    found = row_statistics(torch.tensor([alike, one]), KEYS)
    assert found["visual_entropy"].tolist() == pytest.approx([math.log(4), 0.0], abs=1e-6)


def test_mass_on_evidence_by_hand() -> None:
    """Four visual keys, the second evidence by half and the third as a whole: masses 0.2, 0.05, 0.1, 0.1."""
    visual = keys_with_evidence(torch.tensor([0.0, 0.5, 1.0, 0.0]))
    other = [0.0, 0.3, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.0]  # looks most at the half one
    found = row_statistics(torch.tensor([ROW, other, [0.0] * 9], dtype=torch.float64), visual)
    assert found["evidence_mass"].tolist() == pytest.approx([0.125 / 0.45, 0.2 / 0.5, 0.0])
    assert found["evidence_area"].tolist() == [0.375] * 3
    assert found["pointing"].tolist() == [0.0, 1.0, 0.0]
    assert set(found) <= set(STATISTICS)
    for unknown in (None, torch.zeros(4)):  # not known, and in no frame that was sampled
        assert not {"evidence_mass", "evidence_area", "pointing"} & set(
            row_statistics(torch.tensor([ROW]), keys_with_evidence(unknown))
        )


def test_a_row_that_looks_at_no_picture_points_nowhere() -> None:
    keys = keys_with_evidence(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    found = row_statistics(torch.tensor([[0.5, 0.5, 0, 0, 0, 0, 0, 0, 0]]), keys)
    assert found["pointing"].tolist() == found["evidence_mass"].tolist() == [0.0]


def test_without_a_system_turn_there_is_no_visual_attention_score() -> None:
    keys = key_provenance(torch.tensor([1, 0]).bool(), [CELL], system_tokens=0, prompt_tokens=2)
    found = row_statistics(torch.tensor([[0.9, 0.1]]), keys)
    assert "vas" not in found and found["system_mass"].tolist() == [0.0]


def test_without_pictures_there_is_no_visual_entropy() -> None:
    keys = key_provenance(torch.tensor([0, 0]).bool(), [], system_tokens=0, prompt_tokens=1)
    found = row_statistics(torch.tensor([[1.0, 0.0]]), keys)
    assert "visual_entropy" not in found and found["visual_mass"].tolist() == [0.0]


def test_masses_add_up_to_one() -> None:
    policy = torch.rand(5, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = row_statistics(policy, KEYS)
    total = sum(found[name] for name in ("visual_mass", "system_mass", "text_mass", "generated_mass"))
    assert torch.allclose(total, torch.ones(5))


def test_maps_have_the_shape_of_their_media() -> None:
    layouts = [Layout("video", (View(1, 2, frame=0), View(1, 2, frame=1))), Layout("image", (View(2, 1),))]
    visual = torch.tensor([1, 1, 1, 1, 0, 1, 1]).bool()
    keys = key_provenance(visual, layouts, system_tokens=0, prompt_tokens=7)
    image, video = visual_maps(torch.arange(7.0), keys, layouts)
    assert image.tolist() == [[[5], [6]]]
    assert video.tolist() == [[[0, 1]], [[2, 3]]]
    none = key_provenance(torch.zeros(1).bool(), [], system_tokens=0, prompt_tokens=1)
    assert visual_maps(torch.ones(1), none, []) == []


def test_a_map_adds_up_tiles_and_a_thumbnail() -> None:
    """Two tiles of 1 × 2 tokens beside each other, and the whole picture in 2 × 1, each on two of the four places; the
    tiles end lines, which have no place.
    """
    tiles = View(1, 2, box=(0.0, 0.0, 0.5, 1.0), line_end=True), View(1, 2, box=(0.5, 0.0, 1.0, 1.0), line_end=True)
    layouts = [Layout("image", (*tiles, View(2, 1)))]
    keys = key_provenance(torch.ones(8).bool(), layouts, system_tokens=0, prompt_tokens=8)
    (found,) = visual_maps(torch.tensor([1.0, 2, 100, 3, 4, 100, 40, 80]), keys, layouts)
    assert found.tolist() == [[[10.5, 11, 11.5, 12], [20.5, 21, 21.5, 22]]]


def test_decay_compares_the_halves_of_a_response() -> None:
    """The middle row of an odd number counts in neither."""
    assert decay(np.array([0.5, 0.3, 0.9, 0.1, 0.1], dtype=np.float32)) == pytest.approx(0.25)
    assert decay(np.array([0.2, 0.4])) == 2
    assert decay(np.array([0.0, 0.4])) is None
    assert decay(np.array([0.4])) is None and decay(np.array([])) is None
