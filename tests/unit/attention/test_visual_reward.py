"""Visual rewards against a loop over eager attentions, by hand, and where they are not defined."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForImageTextToText

from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.attention.provenance import KeyKind, KeyProvenance, key_provenance
from ral_system.attention.read import AttentionRead
from ral_system.attention.visual_reward import decay_reward, response_visual_rewards
from ral_system.batches.collate import Collator
from ral_system.config.reward import VisualRewardForm
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.types import Layout, Sample, View
from tests.unit.eager import eager_attentions

RESPONSE = AttentionRead(layers="all")


def visual_reward(attention: GroupAttention, keys: KeyProvenance, form: VisualRewardForm) -> float | None:
    """The reward of a group of one."""
    (found,) = response_visual_rewards(attention, keys, form)
    return found


VISUAL, PICTURE = torch.tensor([0, 1, 1, 0, 0]).bool(), Layout("image", (View(1, 2),))
KEYS = key_provenance(VISUAL, [PICTURE], system_tokens=1, prompt_tokens=3)


def attention_of(*layers_HRT: Tensor, rows: list[int]) -> GroupAttention:
    """Layers whose heads' logits are given: each key reads one coordinate of the query."""
    keys = torch.eye(layers_HRT[0].shape[-1])[:, None]
    layers = tuple(LayerAttention(logits_HRT.transpose(0, 1), keys, 1.0) for logits_HRT in layers_HRT)
    return GroupAttention.alone(layers, torch.tensor(rows))


def test_by_hand() -> None:
    # One layer of two heads and the rows 3 and 4. Head 0 attends as (2, 3, 5, 6, 9), so to earlier keys with
    # system 2/16, visual 8/16 in row 3, and 2/25, 8/25 in row 4; head 1 as (1, 1, 0, 0, 2): 1/2, 1/2 and 1/4, 1/4.
    heads = torch.tensor([[2.0, 3, 5, 6, 9], [1, 1, 1e-30, 1e-30, 2]]).log()[:, None].expand(2, 2, 5)
    attention = attention_of(heads, rows=[3, 4])
    # means over heads: row 3: system 5/16, visual 8/16; row 4: system 33/200, visual 57/200 (own position left in)
    expected = {"share": (8 / 13 + 57 / 90) / 2, "ratio": (8 / 5 + 57 / 33) / 2}
    assert visual_reward(attention, KEYS, "share") == pytest.approx(expected["share"], rel=1e-6)
    assert visual_reward(attention, KEYS, "ratio") == pytest.approx(expected["ratio"], rel=1e-5)


def test_it_is_a_mean_over_layers_and_rows_of_quotients() -> None:
    one, two = (torch.tensor(v).log()[None, None] for v in ([1.0, 2, 1, 9, 9], [9.0, 1, 0.5, 2, 2]))
    attention = attention_of(one, two, rows=[4])
    assert visual_reward(attention, KEYS, "share") == pytest.approx((3 / 4 + 1.5 / 10.5) / 2)
    assert visual_reward(attention, KEYS, "ratio") == pytest.approx((3 + 1.5 / 9) / 2, rel=1e-4)


@pytest.mark.parametrize(("logit", "share"), [(300.0, 0.0), (-300.0, 1.0)])
def test_extremes_stay_finite(logit: float, share: float) -> None:
    attention = attention_of(torch.tensor([[[logit, 0.0, 0.0, 0.0, 0.0]]]), rows=[4])
    assert visual_reward(attention, KEYS, "share") == share
    assert visual_reward(attention, KEYS, "ratio") == pytest.approx(share * 2 / 3 / 1e-6)  # 2 of 3 other keys


def test_rows_that_look_at_neither_are_0() -> None:
    attention = attention_of(torch.tensor([[[-300.0, -300.0, -300.0, 0.0, 0.0]]]), rows=[4])
    assert visual_reward(attention, KEYS, "share") == 0


@pytest.mark.parametrize(
    "keys",
    [
        key_provenance(VISUAL, [PICTURE], system_tokens=0, prompt_tokens=3),
        key_provenance(torch.zeros(5).bool(), [], system_tokens=1, prompt_tokens=3),
    ],
    ids=["no system turn", "no picture"],
)
def test_without_one_of_its_two_sides_it_is_undefined(keys: KeyProvenance) -> None:
    assert visual_reward(attention_of(torch.zeros(1, 1, 5), rows=[4]), keys, "share") is None


def test_lasers_reward_by_hand() -> None:
    """Windows of rows 0 to 9 and 5 to 14 with means 0.4 and 0.2; the rows from 15 on fill no window."""
    visual = torch.tensor([0.6] * 5 + [0.2] * 5 + [0.2] * 5 + [0.9] * 4)
    assert decay_reward(visual) == pytest.approx(0.1 * (1 - 0.015 + math.exp(-2.5) - 0.015))
    assert decay_reward(visual[:3]) == pytest.approx(0.1 * (1 - 0.015))  # shorter than a window
    assert decay_reward(torch.zeros(30)) == 0.0


def test_lasers_reward_grows_with_length_and_not_with_attention() -> None:
    """Responses that look alike at every row: 10 rows more are two windows more, however much they look."""
    for mass in (0.01, 0.5):
        found = [decay_reward(torch.full((rows,), mass)) for rows in (10, 20, 40)]
        assert found == pytest.approx([0.0985, 3 * 0.0985, 7 * 0.0985])


@given(st.lists(st.integers(0, 20), min_size=1, max_size=33))
def test_lasers_reward_the_slow_way(hundredths: list[int]) -> None:
    visual, rows = [x / 100 for x in hundredths], len(hundredths)
    starts = [start for start in range(0, rows, 5) if start + 10 <= rows] or [0]
    means = [sum(visual[start : start + 10]) / min(10, rows) for start in starts]
    expected = sum(0.1 * (math.exp(-5 * (1 - w / max(means))) - 0.015) for w in means) if max(means) else 0.0
    assert decay_reward(torch.tensor(visual)) == pytest.approx(expected, rel=1e-4)


def test_lasers_reward_takes_the_mean_over_heads_and_layers_and_needs_no_system_turn() -> None:
    """Two layers of two heads; 12 rows see two visual keys and one of text, then themselves."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(2, 12, 16, generator=generator) for _ in range(2)]
    visual = torch.tensor([0, 1, 1, *[0] * 13]).bool()
    keys = key_provenance(visual, [PICTURE], system_tokens=0, prompt_tokens=4)
    attention = attention_of(*layers, rows=list(range(4, 16)))
    masses = []
    for row in range(12):
        of_layers = []
        for logits in layers:
            mean = sum(logits[head, row, : 5 + row].softmax(-1) for head in range(2)) / 2
            of_layers.append(float(mean[visual[: 5 + row]].sum() / mean[: 4 + row].sum()))
        masses.append(sum(of_layers) / 2)
    assert visual_reward(attention, keys, "laser_pays_length") == pytest.approx(
        decay_reward(torch.tensor(masses)), rel=1e-4
    )
    assert visual_reward(attention, keys, "share") is None


@pytest.mark.parametrize("form", ["share", "ratio"])
def test_equals_a_loop_over_eager_attentions(
    form: Literal["share", "ratio"], tiny_model: Path, media: MediaStore, draw_samples: Callable[[int], list[Sample]]
) -> None:
    family, other = load_family(tiny_model), AttentionRead(rows="answer", keys="visual", heads="each")
    collate = Collator(family, media)
    policy = PolicyModel(load_model(tiny_model, dtype="float32"), family, temperature=1.0)
    eager = AutoModelForImageTextToText.from_pretrained(tiny_model, attn_implementation="eager").eval()
    samples = tuple(draw_samples(3))
    batch = collate(samples)
    with torch.no_grad():
        read = policy(batch, [other, RESPONSE]).attention[RESPONSE]
    for sample, attention, keys in zip(samples, read, batch.keys.split(batch.packing.lengths), strict=True):
        alone = collate((sample,))
        with torch.no_grad():
            attentions = eager_attentions(eager, alone)
        quotients = []
        for of_layer in attentions:
            mean = of_layer[0].double().mean(0)
            for t in range(len(sample.prompt.token_ids), sample.length):
                visual = sum(mean[t, j].item() for j in range(t) if keys.kind[j] == KeyKind.IMAGE)
                system = sum(mean[t, j].item() for j in range(t) if keys.kind[j] == KeyKind.SYSTEM)
                quotients.append(visual / (visual + system if form == "share" else system + 1e-6))
        assert visual_reward(attention, keys, form) == pytest.approx(sum(quotients) / len(quotients), rel=1e-4)


def test_looking_at_it_changes_nothing_else(
    tiny_model: Path, media: MediaStore, draw_samples: Callable[[int], list[Sample]]
) -> None:
    family, last = load_family(tiny_model), AttentionRead()
    policy = PolicyModel(load_model(tiny_model, dtype="float32"), family, temperature=1.0)
    batch = Collator(family, media)(tuple(draw_samples(3)))
    with torch.no_grad():
        plain, looked = policy(batch, [last]), policy(batch, [last, RESPONSE])
        alone = policy(batch, [RESPONSE])
    assert set(plain.attention) == {last} and set(alone.attention) == {RESPONSE}
    assert torch.equal(plain.log_probs, looked.log_probs)
    for one, two in zip(plain.attention[last], looked.attention[last], strict=True):
        assert torch.equal(one.layers[-1].query, two.layers[-1].query)
    responses = alone.attention[RESPONSE], looked.attention[RESPONSE]
    assert len(responses[0]) == 3
    for one, two in zip(*responses, strict=True):
        assert len(one.layers) == 2
        assert all(torch.equal(a.query, b.query) for a, b in zip(one.layers, two.layers, strict=True))
