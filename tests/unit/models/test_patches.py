import pytest
import torch
from torch import nn

from ral_system.models.patches import PatchProduct, embed_patches_by_product


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
