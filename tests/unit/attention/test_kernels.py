"""The kernels of GPUs as far as a CPU can hold them: what they are called with, and when they can be used."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen as of_torch

from ral_system.attention.kernels import KERNELS, flash_attention, in_words, kernel_for, sdpa, segment_attention
from ral_system.attention.packing import PackedGroup, Packing
from ral_system.errors import SetupError

GPU = torch.device("cuda")
SHARED = Packing((PackedGroup(5, (3, 1)), PackedGroup(4, (2,)), PackedGroup(3, (2, 2, 4))))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Each test finds out by itself whether flash-attn is installed."""
    flash_attention.cache_clear()
    yield
    flash_attention.cache_clear()
    sys.modules.pop("flash_attn", None)


class Slow:
    """Both kernels by their documented arguments: sequences one after another, causal from the last token back."""

    def __init__(self) -> None:
        self.calls = 0

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, scale: float, causal: bool
    ) -> Tensor:
        self.calls += 1
        assert ends_q.dtype == ends_k.dtype == torch.int32
        found = []
        for q0, q1, k0, k1 in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
            keys, values = (t[k0:k1].repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
            logits = torch.einsum("rhd,shd->hrs", q[q0:q1], keys) * scale
            later = torch.ones(int(q1 - q0), int(k1 - k0)).triu(int(k1 - k0 - q1 + q0) + 1).bool()
            logits = logits.masked_fill(later & causal, -torch.inf)
            found.append(torch.einsum("hrs,shd->rhd", logits.softmax(-1), values))
        return torch.cat(found)

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        """flash-attn 2.8's arguments, the first ten of them."""
        assert (max_seqlen_q, max_seqlen_k) == (int(cu_seqlens_q.diff().max()), int(cu_seqlens_k.diff().max()))
        assert dropout_p == 0 and softmax_scale is not None
        return self.attend(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal)

    def varlen_attn(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take the arguments of the installed torch, and no others."""
        given = _TORCH.bind(*args, **kwargs).arguments
        q, k, v, ends_q, ends_k = (given.pop(n) for n in ("query", "key", "value", "cu_seq_q", "cu_seq_k"))
        assert (given.pop("max_q"), given.pop("max_k")) == (int(ends_q.diff().max()), int(ends_k.diff().max()))
        causal = {(-1, 0): True, (-1, -1): False}[given.pop("window_size")]
        assert given.keys() == {"scale", "enable_gqa"} and given["enable_gqa"]
        return self.attend(q, k, v, ends_q, ends_k, given["scale"], causal)


_TORCH = inspect.signature(of_torch.varlen_attn)


@pytest.fixture(params=["flash_attn", "varlen"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Slow]:
    slow, package = Slow(), ModuleType("flash_attn")
    package.__spec__ = inspect.getmodule(pytest).__spec__  # type: ignore[union-attr]
    package.flash_attn_varlen_func = slow.flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(of_torch, "varlen_attn", slow.varlen_attn)
    monkeypatch.setattr("ral_system.attention.kernels.kernel_for", lambda device, dtype: request.param)
    return request.param, slow


def tensors(tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, tokens, 8, generator=generator).double().requires_grad_() for heads in (4, 2, 2)]


def test_groups_attend_as_by_sdpa(kernel: tuple[str, Slow]) -> None:
    name, slow = kernel
    given, found = tensors(SHARED.tokens), []
    for attend in (KERNELS[name], sdpa):
        attention = attend(*given, SHARED, 0.3)
        found.append([attention, *torch.autograd.grad(attention.square().sum(), given)])
    assert slow.calls == 2  # all prompts, all responses
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-10


def test_windows_attend_in_one_call(kernel: tuple[str, Slow]) -> None:
    _, slow = kernel
    lengths = (4, 4, 7, 1, 4)
    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    given, found = tensors(sum(lengths)), []
    expected = sdpa(*given, Packing.apart(lengths), 0.3, causal=False)
    for attention in (segment_attention(*given, ends, max(lengths), 0.3), expected):
        found.append([attention, *torch.autograd.grad(attention.square().sum(), given)])
    assert slow.calls == 1
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() <= 1e-10


@pytest.mark.parametrize("installed", [False, True])
def test_the_kernel_follows_from_device_and_precision(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installed:
        (tmp_path / "flash_attn.py").write_text("def flash_attn_varlen_func(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    assert kernel_for(torch.device("cpu"), torch.bfloat16) == kernel_for(GPU, torch.float32) == "sdpa"
    assert kernel_for(GPU, torch.bfloat16) == ("flash_attn" if installed else "varlen")
    assert set(KERNELS) == {"flash_attn", "varlen", "sdpa"}


def test_a_report_says_what_needs_masks() -> None:
    assert in_words("flash_attn", pictures=False, windows=False) == "flash-attn"
    assert in_words("sdpa", pictures=True, windows=True) == "torch's scaled_dot_product_attention"
    masked = "flash-attn; for sliding windows torch's scaled_dot_product_attention with masks"
    assert in_words("flash_attn", pictures=False, windows=True) == masked


def test_a_flash_attn_that_does_not_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flash_attn.py").write_text('raise ImportError("undefined symbol: _ZN3c10\\nby the loader")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SetupError) as refused:
        kernel_for(GPU, torch.bfloat16)
    assert str(refused.value) == (
        "flash-attn is installed and does not import (undefined symbol: _ZN3c10): reinstall it for this version of "
        "torch, or uninstall it to use torch's varlen attention"
    )
    assert kernel_for(GPU, torch.float32) == "sdpa"
