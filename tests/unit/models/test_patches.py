from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ral_system.attention.probe import VISION_IMPLEMENTATION
from ral_system.models.patches import PatchProduct, attend_to_segments_together, embed_patches_by_product
from tests.unit.attention.probed import FAMILIES


@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_the_convolution_forward_and_backward(bias: bool) -> None:
    kernel = (2, 5, 3)
    model = nn.Sequential(nn.Conv3d(3, 7, kernel, stride=kernel, bias=bias)).double()
    patches = torch.randn(11, 3, *kernel, dtype=torch.float64)
    weight, into = torch.randn(11, 7, 1, 1, 1, dtype=torch.float64), []
    for _ in range(2):
        given = patches.clone().requires_grad_()
        found = model(given)
        into.append((found, *torch.autograd.grad((found * weight).sum(), [given, *model.parameters()])))
        embed_patches_by_product(model)
    assert type(model[0]) is PatchProduct
    torch.testing.assert_close(into[0], into[1])


def test_a_convolution_whose_windows_overlap_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv3d(3, 7, 3, stride=1))
    embed_patches_by_product(model)
    assert type(model[0]) is nn.Conv3d


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_segments_in_one_call_are_what_they_are_one_by_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES[family]().eval()
    pixels = torch.randn(12 * 12 + 4 * 6 + 2 * 4 * 4, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    grids = torch.tensor([[1, 12, 12], [1, 4, 6], [2, 4, 4]])
    calls: list[int] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(query: Tensor, *others: Any, **options: Any) -> Tensor:
        calls[-1] += 1
        return original(query, *others, **options)

    for where in ("torch.nn.functional", "ral_system.attention.kernels"):
        monkeypatch.setattr(f"{where}.scaled_dot_product_attention", counted)
    found = []
    for together in (False, True):
        if together:
            attend_to_segments_together(model)
        calls.append(0)
        output = model.model.get_video_features(pixels, grids, return_dict=True)
        model.zero_grad(set_to_none=True)
        torch.cat(output.pooler_output).square().sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((torch.cat(output.pooler_output).detach(), gradients))
    (one_by_one, slow), (at_once, fast) = found
    # Two layers over frames of 144, 24, 16 and 16 patches; one of Qwen2.5-VL's is over windows of 10 × 16, 8, 2 × 16.
    assert calls == ([13 + 4, 3 + 3] if family == "qwen2_5_vl" else [2 * 4, 2 * 3])
    assert torch.allclose(one_by_one, at_once, atol=1e-5)
    assert slow.keys() == fast.keys()
    largest = max(float(g.abs().max()) for g in slow.values())
    for name, gradient in slow.items():
        assert torch.allclose(gradient, fast[name], rtol=1e-3, atol=1e-5 * largest), name


def test_text_layers_are_left_alone() -> None:
    model = FAMILIES["qwen2_5_vl"]()
    before = model.config.text_config._attn_implementation
    attend_to_segments_together(model)
    assert model.config.vision_config._attn_implementation == VISION_IMPLEMENTATION
    assert model.config.text_config._attn_implementation == before != VISION_IMPLEMENTATION
