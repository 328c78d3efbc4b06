"""AVAR's objective in the supervised stages: against eager attentions, batching, and what it does to attention."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from ral_system.attention.group import GroupAttention, LayerAttention
from ral_system.attention.mean_attention import _block, log_mean_attention
from ral_system.attention.packing import Packing
from ral_system.attention.provenance import KeyKind, key_provenance
from ral_system.attention.read import QUESTION_AT_ALL_LAYERS
from ral_system.batches.collate import Collator
from ral_system.config.supervised import AttentionGuidanceConfig
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.models.policy import PolicyModel
from ral_system.training.supervised import guide_attention, supervised_objective
from ral_system.types import Counts, Layout, Sample, View
from tests.unit.eager import eager_attentions
from tests.unit.training.learners import Start, Watched, plan

pytestmark = pytest.mark.usefixtures("one_thread")


def test_value_and_gradients_equal_eager_attentions(
    tiny_model: Path, media: MediaStore, rl_samples: list[Sample]
) -> None:
    samples = tuple(rl_samples[:3])
    family, read = load_family(tiny_model), QUESTION_AT_ALL_LAYERS
    collate, counts = Collator(family, media), Counts(tokens=100, sequences=6)
    policy = PolicyModel(load_model(tiny_model, dtype="float32"), family, temperature=1.0)
    batch = collate(samples)
    output = policy(batch, [read])
    guidance = AttentionGuidanceConfig(image=0.5, system=0.2)
    found = supervised_objective(output, output.attention[read], batch, counts, guidance)
    plain = supervised_objective(policy(batch), (), batch, counts)
    term = found.loss - plain.loss
    term.backward()
    gradients = {
        n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-7
    }

    eager = AutoModelForImageTextToText.from_pretrained(tiny_model, attn_implementation="eager").eval()
    expected = torch.zeros(())
    for sample in samples:
        alone = collate((sample,))
        attentions = eager_attentions(eager, alone)
        asked = list(sample.prompt.question_positions)
        image, system = alone.keys.kind == KeyKind.IMAGE, alone.keys.kind == KeyKind.SYSTEM
        logs = [
            (of_head[asked][:, image].mean().log(), (of_head[asked][:, system].mean() + 1e-6).log())
            for of_layer in attentions
            for of_head in of_layer[0]
        ]
        assert len(logs) == 4
        expected = expected + sum(0.2 * s - 0.5 * i for i, s in logs) / 4 / 6
    assert term.item() == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    largest = max(g.abs().max().item() for g in gradients.values())
    named = dict(eager.named_parameters())
    assert len(gradients) > 20
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, named[name].grad, rtol=1e-2, atol=1e-4 * largest), name  # type: ignore[arg-type]


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    query, key = torch.randn(7, 4, 8, generator=g), torch.randn(20, 2, 8, generator=g)
    masks = torch.arange(20) < 4, (torch.arange(20) >= 6) & (torch.arange(20) < 12)
    found = []
    for size in (1 << 25, 4 * 4 * 20 * 2):
        monkeypatch.setattr("ral_system.attention.mean_attention._BLOCK_BYTES", size)
        q, k = query.clone().requires_grad_(), key.clone().requires_grad_()
        logs = log_mean_attention(LayerAttention(q, k, 0.3), torch.arange(13, 20), *masks)
        (logs[0].sum() - logs[1].sum()).backward()
        found.append([*(t.detach() for t in logs), q.grad, k.grad])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-6)  # type: ignore[arg-type]


def test_keys_that_get_next_to_nothing_give_finite_values_and_gradients() -> None:
    query = torch.full((2, 1, 1), 1.0, requires_grad=True)
    key = torch.tensor([-400.0, 400.0, 0.0]).view(3, 1, 1).requires_grad_()
    (found,) = log_mean_attention(LayerAttention(query, key, 1.0), torch.tensor([1, 2]), torch.tensor([1, 0, 0]).bool())
    assert found.item() == pytest.approx(-800.0)
    found.backward()
    assert query.grad is not None and torch.isfinite(query.grad).all()
    first: Tensor = _block(
        query.detach(), key.detach(), torch.tensor([0, 0]), 1.0, None, None, torch.tensor([0, 0, 1]).bool()
    )[0]
    assert first.item() < -1e29  # no row sees it, and still no NaN


def test_a_question_before_its_picture_is_left_out() -> None:
    visual, picture = torch.tensor([0, 0, 0, 1, 1]).bool(), Layout("image", (View(1, 2),))
    kinds = key_provenance(visual, [picture], system_tokens=1, prompt_tokens=5)
    layer = LayerAttention(torch.ones(2, 1, 4, requires_grad=True), torch.ones(5, 1, 4), 1.0)
    attention = GroupAttention.alone((layer,), torch.tensor([1, 2]))
    batch = SimpleNamespace(input_ids=torch.zeros(5), keys=kinds, packing=Packing.apart((5,)))
    guidance = AttentionGuidanceConfig(image=0.5, system=0.5)
    loss, metrics = guide_attention([attention], batch, Counts(5, 1), guidance)  # type: ignore[arg-type]
    assert loss.item() == 0
    assert metrics["supervised/image_attention"][1].item() == 0


def test_it_moves_attention_from_the_system_turn_to_pictures_and_does_not_depend_on_batching(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    config = make_config(
        "sft.attention_guidance.image=0.5", "sft.attention_guidance.system=0.5", "sft.learning_rate=1e-3"
    )
    found = []
    for micro_batch in (12, 5):
        watched = Watched(start_rank(config, "sft"))
        update = plan(rl_samples, 1, micro_batch).updates[0]
        found.append(([watched.rank.fit(update) for _ in range(6)], watched.gradients[0]))
    (metrics, gradients), (other, other_gradients) = found
    assert other[0] == pytest.approx(metrics[0], rel=1e-4)
    largest = max(g.abs().max().item() for g in gradients.values())
    for name, gradient in gradients.items():
        assert torch.allclose(other_gradients[name], gradient, rtol=1e-3, atol=1e-5 * largest), name
    assert metrics[-1]["supervised/image_attention"] > metrics[0]["supervised/image_attention"] + 0.005
    assert metrics[-1]["supervised/system_attention"] < metrics[0]["supervised/system_attention"]
    assert 0 < metrics[0]["supervised/image_attention"] < 1


def test_with_both_weights_zero_attention_is_not_read(
    start_rank: Start, rl_samples: list[Sample], make_config: Callable
) -> None:
    update = plan(rl_samples, 1, 5).updates[0]
    metrics = start_rank(make_config("sft.attention_guidance.image=0"), "sft").fit(update)
    assert "supervised/image_attention" not in metrics
