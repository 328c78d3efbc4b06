"""Matrices multiplied in bfloat16 while weights and sums stay in float32 (`perceive.autocast`, `sft.autocast`)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ral_system.attention.kernels import sdpa, whole_attention
from ral_system.attention.packing import PackedGroup, Packing
from ral_system.attention.read import AttentionRead
from ral_system.batches.collate import Collator
from ral_system.config.choices import Autocast, Dtype
from ral_system.media.store import MediaStore
from ral_system.models import autocast
from ral_system.models.autocast import autocast_dtype
from ral_system.models.policy import PolicyModel
from ral_system.scoring.build import build_policy
from ral_system.training.plan import plan_updates
from ral_system.types import Sample

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("choice", "dtype", "able", "expected"),
    [
        ("none", "float32", True, None),
        ("bfloat16", "float32", False, torch.bfloat16),
        ("auto", "float32", True, torch.bfloat16),
        ("auto", "float32", False, None),
        ("auto", "bfloat16", True, None),
    ],
)
def test_auto_asks_what_the_device_can_do(
    choice: Autocast, dtype: Dtype, able: bool, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autocast, "multiplies_bfloat16", lambda device: able)
    assert autocast_dtype(choice, CPU, dtype) == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"bf16": True, "sve": True}, True),
        ({}, False),
    ],
)
def test_a_cpu_multiplies_bfloat16_if_it_has_one_of_its_instructions(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert autocast.multiplies_bfloat16(CPU) is expected


def dtypes_of_products(policy: PolicyModel) -> tuple[dict[str, torch.dtype], list[torch.utils.hooks.RemovableHandle]]:
    """Fill a dictionary with what each linear layer gives in the next pass."""
    found: dict[str, torch.dtype] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = output.dtype

        return hook

    layers = {name: m for name, m in policy.named_modules() if type(m) is nn.Linear}
    return found, [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]


def test_text_model_and_encoder_multiply_in_bfloat16_and_the_rest_stays_as_it_is(
    tiny_model: Path, media: MediaStore, draw_samples: Callable[[int], list[Sample]]
) -> None:
    read = AttentionRead()
    policy = build_policy(tiny_model, CPU, read, dtype="float32", temperature=1.0)
    batch = Collator(policy.family, media)(tuple(draw_samples(3)))
    exact = policy(batch, [read])
    policy.autocast = torch.bfloat16
    found, hooks = dtypes_of_products(policy)
    rough = policy(batch, [read])
    for hook in hooks:
        hook.remove()
    assert set(found.values()) == {torch.bfloat16}
    assert any("visual" in name for name in found) and any("language_model" in name for name in found)
    assert rough.log_probs.dtype == rough.entropy.dtype == torch.float32
    gap = (rough.log_probs - exact.log_probs).abs().max()
    assert 0 < gap < 0.05
    rough.log_probs.sum().backward()
    assert {p.grad.dtype for p in policy.parameters() if p.grad is not None} == {torch.float32}

    policy.autocast = None
    assert torch.equal(policy(batch, [read]).log_probs, exact.log_probs)


def test_attention_on_a_cpu_stays_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    packing = Packing((PackedGroup(5, (3, 2)), PackedGroup(4, (2,))))
    q, k, v = (torch.randn(1, 2, packing.tokens, 8, generator=generator) for _ in range(3))
    apart, pictures = sdpa(q, k, v, packing, 0.3), whole_attention(q, k, v, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sdpa(q, k, v, packing, 0.3), apart)
        assert torch.equal(whole_attention(q, k, v, 0.3), pictures)
        assert sdpa(q, k, v.bfloat16(), packing, 0.3).dtype == torch.float32


def test_stages_of_demonstrations_have_it_and_rl_does_not(
    make_config: Callable, start_rank: Callable, draw_samples: Callable[[int], list[Sample]]
) -> None:
    update = plan_updates(draw_samples(4), updates=1, shards=1, max_tokens=4096).updates[0]
    losses = {}
    for choice in ("none", "bfloat16"):
        rank = start_rank(make_config(f"sft.autocast={choice}"), "sft")
        before = rank.validate(update)["held_out/loss"]
        losses[choice] = [before, *(rank.fit(update)["supervised/loss"] for _ in range(3))]
    assert losses["bfloat16"] == pytest.approx(losses["none"], rel=0.01) and losses["bfloat16"] != losses["none"]
    assert losses["bfloat16"][0] > losses["bfloat16"][-1]

    rank = start_rank(make_config("sft.autocast=bfloat16", "perceive.autocast=bfloat16"), "rl")
    assert rank._engine.policy.autocast is None
