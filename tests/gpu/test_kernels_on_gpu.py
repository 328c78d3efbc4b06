"""Attention of packed groups by the kernels of a GPU: the same as by scaled_dot_product_attention in float32."""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from ral_system.attention.kernels import KERNELS, kernel_for, sdpa, segment_attention
from ral_system.attention.packing import PackedGroup, Packing
from tests.gpu.devices import GPU
from tests.gpu.rows import row

pytestmark = GPU

SHARED = Packing((PackedGroup(900, (120, 7, 64)), PackedGroup(300, (1,)), PackedGroup(33, (200,) * 8)))
APART = Packing.apart((1000, 3, 700))
INSTALLED = [name for name in ("flash_attn", "varlen") if name == "varlen" or find_spec(name)]


def tensors(packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value."""
    generator = torch.Generator("cuda").manual_seed(0)

    def random(heads: int) -> Tensor:
        values = torch.randn(1, heads, packing.tokens, 128, generator=generator, device="cuda")
        return values.bfloat16().requires_grad_()

    return random(28), random(4), random(4)


@pytest.mark.parametrize("kernel", INSTALLED)
@pytest.mark.parametrize("packing", [SHARED, APART], ids=["shared", "apart"])
def test_groups_attend_as_in_float32(kernel: str, packing: Packing) -> None:
    given = query, key, value = tensors(packing)
    exact = (
        query.detach().float().requires_grad_(),
        key.detach().float().requires_grad_(),
        value.detach().float().requires_grad_(),
    )
    found = []
    for attend, inputs in ((KERNELS[kernel], given), (sdpa, exact)):
        attention = attend(*inputs, packing, 128**-0.5)
        found.append([attention, *torch.autograd.grad(attention.float().square().sum(), inputs)])
    errors = [float((one.float() - other).norm() / other.norm()) for one, other in zip(*found, strict=True)]
    row(f"{kernel} and float32, {packing.tokens:,} tokens", f"largest relative error {max(errors):.1e}")
    assert max(errors) <= 1e-2


@pytest.mark.parametrize("kernel", INSTALLED)
def test_windows_attend_as_in_float32(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (tensor.detach() for tensor in tensors(APART))
    key, value = key.repeat_interleave(7, dim=1), value.repeat_interleave(7, dim=1)
    ends = torch.tensor([0, 1000, 1003, 1703], dtype=torch.int32, device="cuda")
    exact = segment_attention(query.float(), key.float(), value.float(), ends, 1000, 128**-0.5)
    monkeypatch.setattr("ral_system.attention.kernels.kernel_for", lambda device, dtype: kernel)
    found = segment_attention(query, key, value, ends, 1000, 128**-0.5)
    error = float((found.float() - exact).norm() / exact.norm())
    row(f"{kernel} and float32, windows", f"relative error {error:.1e}")
    assert error <= 1e-2


def test_the_fastest_one_is_chosen() -> None:
    assert kernel_for(torch.device("cuda"), torch.bfloat16) == INSTALLED[0]
