"""The visual attention score against a loop over eager attentions, by hand, and where it is not defined."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.attention.provenance import KeyKind, KeyProvenance, key_provenance
from ral_system.attention.read import QUESTION_AT_ALL_LAYERS
from ral_system.attention.visual_score import mean_score, visual_score
from ral_system.batches.collate import Collator
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.types import Layout, Sample, View
from tests.unit.eager import eager_attentions


def attention_of(logits_RT: Tensor, rows: list[int]) -> GroupAttention:
    """One head whose logits are given: each key reads one coordinate of the query."""
    keys = torch.eye(logits_RT.shape[1])[:, None]
    layer = LayerAttention(logits_RT[:, None], keys, 1.0)
    return GroupAttention.alone((layer,), torch.tensor(rows))


VISUAL, PICTURE = torch.tensor([0, 1, 1, 0, 0]).bool(), Layout("image", (View(1, 2),))
KEYS = key_provenance(VISUAL, [PICTURE], system_tokens=1, prompt_tokens=5)


def test_by_hand() -> None:
    # attention ∝ (2, 3, 5, 6, 9): row 3 sees the first four; row 4 all: system 2, visual 8
    logits = torch.tensor([2.0, 3, 5, 6, 9]).log().expand(2, 5)
    found = visual_score(attention_of(logits, [3, 4]), KEYS)
    assert found is not None
    assert found.score.tolist() == [[pytest.approx(8 / 2)]]
    assert found.visual_mass.tolist() == [[pytest.approx((8 / 16 + 8 / 25) / 2)]]
    assert found.system_mass.tolist() == [[pytest.approx((2 / 16 + 2 / 25) / 2)]]


def test_it_is_a_mean_of_ratios_and_no_ratio_of_means() -> None:
    logits = torch.tensor([[1.0, 1, 1, 1, 1], [1.0, 50, 50, 1, 1]]).log()
    found = visual_score(attention_of(logits, [3, 4]), KEYS)
    assert found is not None
    assert found.score.item() == pytest.approx((2 + 100) / 2)


def test_a_system_turn_that_is_hardly_looked_at_gives_a_finite_score() -> None:
    found = visual_score(attention_of(torch.tensor([[-300.0, 0, 0, 0, 0]]), [4]), KEYS)
    assert found is not None
    assert found.score.item() == pytest.approx(2 * torch.tensor(300.0, dtype=torch.float64).exp().item(), rel=1e-6)


@pytest.mark.parametrize(
    "keys",
    [
        key_provenance(VISUAL, [PICTURE], system_tokens=0, prompt_tokens=5),
        key_provenance(torch.zeros(5).bool(), [], system_tokens=1, prompt_tokens=5),
    ],
    ids=["no system turn", "no picture"],
)
def test_without_one_of_its_two_sides_it_is_undefined(keys: KeyProvenance) -> None:
    assert visual_score(attention_of(torch.zeros(1, 5), [4]), keys) is None


def test_means_are_over_rows_of_all_sequences() -> None:
    one = visual_score(attention_of(torch.tensor([[1.0, 1, 1, 1, 1]]).log(), [4]), KEYS)
    two = visual_score(attention_of(torch.tensor([[1.0, 4, 4, 1, 1]] * 3).log(), [3, 4, 4]), KEYS)
    assert one is not None and two is not None
    found = mean_score([one, two])
    assert (found.score.item(), found.rows) == (pytest.approx((2 + 3 * 8) / 4), 4)


def test_equals_a_loop_over_eager_attentions(
    tiny_model: Path, media: MediaStore, draw_samples: Callable[[int], list[Sample]]
) -> None:
    family = load_family(tiny_model)
    collate = Collator(family, media)
    policy = PolicyModel(load_model(tiny_model, dtype="float32"), family, temperature=1.0)
    eager = AutoModelForImageTextToText.from_pretrained(tiny_model, attn_implementation="eager").eval()
    samples = tuple(draw_samples(3))
    batch = collate(samples)
    with torch.no_grad():
        read = policy(batch, [QUESTION_AT_ALL_LAYERS]).attention[QUESTION_AT_ALL_LAYERS]
    for sample, attention, keys in zip(samples, read, batch.keys.split(batch.packing.lengths), strict=True):
        found = visual_score(attention, keys)
        alone = collate((sample,))
        with torch.no_grad():
            attentions = eager_attentions(eager, alone)
        asked = sample.prompt.question_positions
        assert asked
        for layer, of_layer in enumerate(attentions):
            for head, rows in enumerate(of_layer[0].double()):
                ratio = visual_mass = system_mass = 0.0
                for i in asked:
                    visual = system = 0.0
                    for j in range(i + 1):
                        visual += rows[i, j].item() * (keys.kind[j].item() == KeyKind.IMAGE)
                        system += rows[i, j].item() * (keys.kind[j].item() == KeyKind.SYSTEM)
                    ratio, visual_mass, system_mass = (
                        ratio + visual / system,
                        visual_mass + visual,
                        system_mass + system,
                    )
                n = len(asked)
                assert found is not None
                assert found.score[layer, head].item() == pytest.approx(ratio / n, rel=1e-4)
                assert found.visual_mass[layer, head].item() == pytest.approx(visual_mass / n, rel=1e-4)
                assert found.system_mass[layer, head].item() == pytest.approx(system_mass / n, rel=1e-4)
