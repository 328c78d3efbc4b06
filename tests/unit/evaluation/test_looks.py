"""Where answers look: figures by hand, and those of a model."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from ral_system.attention.provenance import KeyProvenance, key_provenance
from ral_system.batches.collate import Collator
from ral_system.evaluation.looks import Look, by_layer, figures_of, measure_looks, on_visual, summary
from ral_system.evaluation.probed import load_probed
from ral_system.evaluation.saliency import rank_correlation, visual_saliency
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.types import Layout, Sample, View
from tests.unit.eager import eager_attentions, media_inputs

FIVE = torch.tensor([0, 1, 1, 1, 0, 0]).bool()
"""System, three visual tokens, text, generated."""


def keys(evidence: list[float] | None = None):
    shows = None if evidence is None else torch.tensor(evidence)
    layouts = [Layout("image", (View(1, 3),))]
    return key_provenance(FIVE, layouts, system_tokens=1, prompt_tokens=5, evidence=shows)


def look(policies: list[torch.Tensor], of: KeyProvenance) -> Look:
    return Look(tuple(figures_of(policy, of) for policy in policies), on_visual(policies[-1], of))


ROWS = torch.tensor(
    [
        [0.2, 0.2, 0.4, 0.0, 0.1, 0.1],
        [0.6, 0.3, 0.0, 0.0, 0.1, 0.0],
        [0.8, 0.0, 0.1, 0.1, 0.0, 0.0],
    ],
    dtype=torch.float64,
)


def test_by_hand() -> None:
    """The first half of three rows is the first, the second half the last."""
    found = look([ROWS.flip(0), ROWS], keys([0.0, 1.0, 0.5]))
    entropy = (-(math.log(1 / 3) / 3 + math.log(2 / 3) * 2 / 3) + 0 + math.log(2)) / 3
    assert found.figures == {
        "visual_mass": pytest.approx((0.6 + 0.3 + 0.2) / 3),
        "sink_mass": pytest.approx((0.8 + 0.9 + 1.0) / 3),
        "visual_entropy": pytest.approx(entropy),
        "visual_entropy_share": pytest.approx(entropy / math.log(3)),
        "evidence_mass": pytest.approx((2 / 3 + 0 + 0.15 / 0.2) / 3),
        "evidence_area": pytest.approx(0.5),
        "pointing": pytest.approx(2 / 3),
        "decay": pytest.approx(0.2 / 0.6),
    }
    assert found.visual == pytest.approx(np.array([0.5, 0.5, 0.1]) / 3)
    assert found.layers[0] == pytest.approx({**found.figures, "decay": 0.6 / 0.2})


def test_what_is_not_defined_is_left_out() -> None:
    one_row = look([ROWS[:1]], keys()).figures
    assert not {"decay", "evidence_mass", "evidence_area", "pointing"} & one_row.keys()
    assert "decay" not in look([torch.eye(6)[[0, 1]].double()], keys()).figures  # the first half sees nothing
    one_token = key_provenance(
        torch.tensor([1, 0, 0]).bool(), [Layout("image", (View(1, 1),))], system_tokens=0, prompt_tokens=2
    )
    assert "visual_entropy_share" not in look([torch.full((2, 3), 1 / 3)], one_token).figures


def test_means_are_over_the_answers_that_define_a_figure_and_by_outcome() -> None:
    nothing = np.zeros(1)
    first = {"visual_mass": 0.7}
    looks = [
        Look((first, {"visual_mass": 0.2, "evidence_mass": 0.9}), nothing),
        Look((first, {"visual_mass": 0.4, "evidence_mass": 0.3}), nothing),
        Look((first, {"visual_mass": 0.9, "evidence_mass": 0.1}), nothing),
        Look(({"visual_mass": 0.3}, {"visual_mass": 0.1}), nothing),
    ]
    found = summary(list(zip(looks, (1.0, 0.5, 0.0, 1.0), strict=True)))
    assert found == {
        "looks/visual_mass": pytest.approx(0.4),
        "looks/evidence_mass": pytest.approx(1.3 / 3),
        "looks/evidence_mass_right": pytest.approx((0.9 + 0.5 * 0.3) / 1.5),
        "looks/evidence_mass_wrong": pytest.approx((0.5 * 0.3 + 0.1) / 1.5),
    }
    all_right = summary([(of_answer, 1.0) for of_answer in looks])
    assert "looks/evidence_mass_wrong" not in all_right and "looks/evidence_mass_right" in all_right
    assert by_layer(looks) == {"visual_mass": pytest.approx([0.6, 0.4])}
    assert summary([]) == {} == by_layer([])


@pytest.fixture(scope="module")
def groups(draw_samples: Callable[[int], list[Sample]]) -> list[tuple[Sample, ...]]:
    """Two answers to each of three questions, of different lengths."""
    return [
        (sample, replace(sample, id=f"{sample.id}, cut", response_token_ids=sample.response_token_ids[:-3]))
        for sample in draw_samples(3)
    ]


def test_of_a_model_they_are_those_of_its_layers(
    tiny_model: Path, media: MediaStore, groups: list[tuple[Sample, ...]]
) -> None:
    """Against the attention that transformers returns, row by row: a row's own key is left out of its policy."""
    found = measure_looks(tiny_model, groups, media, dtype="float32", max_tokens=10_000)
    assert found.keys() == {sample.id for group in groups for sample in group}
    family = load_family(tiny_model)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model, attn_implementation="eager")
    for sample in (groups[0][1], groups[2][0]):
        batch = Collator(family, media)((sample,))
        with torch.no_grad():
            layers = [whole_1HTT[0].double() for whole_1HTT in eager_attentions(model, batch)]
        at, policies = torch.arange(len(sample.prompt.token_ids), sample.length), []
        for whole_HTT in layers:
            rows_HRT = whole_HTT[:, at].clone()
            rows_HRT[:, torch.arange(len(at)), at] = 0
            policies.append(rows_HRT.sum(0) / rows_HRT.sum(0).sum(-1, keepdim=True))
        expected = look(policies, batch.keys)
        assert len(expected.layers) == len(found[sample.id].layers) == 2
        for one, other in zip(found[sample.id].layers, expected.layers, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
        assert expected.layers[0]["visual_mass"] != pytest.approx(expected.figures["visual_mass"], abs=1e-3)
        assert found[sample.id].visual == pytest.approx(expected.visual, abs=1e-6)
        assert {"evidence_mass", "pointing", "decay"} <= expected.figures.keys()


def test_how_answers_are_batched_does_not_matter(
    tiny_model: Path, media: MediaStore, groups: list[tuple[Sample, ...]]
) -> None:
    together = measure_looks(tiny_model, groups, media, dtype="float32", max_tokens=10_000)
    alone = measure_looks(tiny_model, groups, media, dtype="float32", max_tokens=1)
    assert together.keys() == alone.keys() and len(alone) == 6
    for id, of_answer in alone.items():
        assert together[id].figures == pytest.approx(of_answer.figures, abs=1e-5)
        assert together[id].visual == pytest.approx(of_answer.visual, abs=1e-6)


def test_rank_correlation_by_hand() -> None:
    one = np.array([0.1, 0.2, 0.3, 0.4])
    assert rank_correlation(one, np.array([1.0, 7.0, 2.0, 9.0])) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert rank_correlation(one, -(one**3)) == pytest.approx(-1.0)
    tied = np.array([5.0, 5.0, 6.0])  # ranks 1.5, 1.5, 3
    assert rank_correlation(tied, np.array([1.0, 2.0, 3.0])) == pytest.approx(1.5 / math.sqrt(1.5 * 2))
    assert rank_correlation(tied, np.ones(3)) is None and rank_correlation(np.ones(1), np.ones(1)) is None


def test_agreement_is_with_the_gradients_of_transformers(
    tiny_model: Path, media: MediaStore, groups: list[tuple[Sample, ...]]
) -> None:
    """Against a backward pass of the whole model, and ranks counted one by one; only of the answers asked about."""
    asked = {groups[0][1].id, groups[1][0].id}
    found = measure_looks(tiny_model, groups, media, dtype="float32", max_tokens=10_000, saliency=asked)
    assert {id for id, of_answer in found.items() if "saliency_agreement" in of_answer.figures} == asked
    policy, _ = load_probed(tiny_model, "float32")
    family = policy.family
    model = AutoModelForImageTextToText.from_pretrained(tiny_model, attn_implementation="eager")
    for sample in (groups[0][1], groups[1][0]):
        batch = Collator(family, media)((sample,))
        inputs = media_inputs(batch)
        seen = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        leaf_NE = torch.cat(list(seen)).detach().requires_grad_()
        embedded_TE = model.get_input_embeddings()(batch.input_ids).detach()
        embedded_TE[family.visual(batch.input_ids)] = leaf_NE
        logits_TV = model(inputs_embeds=embedded_TE[None], position_ids=batch.position_ids).logits[0]
        logits_TV[:, list(family.banned_ids)] = -torch.inf
        at = range(len(sample.prompt.token_ids) - 1, sample.length - 1)
        sum(logits_TV[t].log_softmax(-1)[y] for t, y in zip(at, sample.response_token_ids, strict=True)).backward()
        norms_N = leaf_NE.grad.norm(dim=-1)
        torch.testing.assert_close(visual_saliency(policy, batch), norms_N, rtol=1e-3, atol=1e-7)
        ranks = [[sum(other < one for other in of) for one in of] for of in (found[sample.id].visual, norms_N.numpy())]
        n, squares = len(norms_N), sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
        assert n >= 4 and len(set(ranks[0])) == len(set(ranks[1])) == n  # no ties
        expected = 1 - 6 * squares / (n * (n * n - 1))
        assert found[sample.id].figures["saliency_agreement"] == pytest.approx(expected)
