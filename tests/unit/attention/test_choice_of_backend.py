import subprocess
import sys

import pytest
import torch

from ral_system.attention import chunked, fused, row_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_auto_is_triton_where_that_works_and_chunked_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(device: str, dtype: torch.dtype, dim: int = 8) -> type:
        key = torch.zeros(4, 1, dim, dtype=dtype, device=device)
        return type(row_kernels.open_kernels("auto", key, scale=1.0, branches=None, key_mask=None, heads="mean"))

    assert chosen("cpu", torch.float32) is chunked.ChunkedKernels
    if DEVICE == "cuda":
        assert chosen("cuda", torch.bfloat16) is fused.FusedKernels
        assert chosen("cuda", torch.float64) is chunked.ChunkedKernels
        assert chosen("cuda", torch.float32, 257) is chunked.ChunkedKernels
        monkeypatch.setattr(row_kernels, "find_spec", lambda name: None)
        assert chosen("cuda", torch.bfloat16) is chunked.ChunkedKernels


def test_the_library_works_without_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None  # import triton raises ImportError
import torch
from ral_system.attention import attention_divergence
print(attention_divergence(*torch.zeros(2, 4, 1, 8), torch.tensor([1]), torch.eye(4)[:1], scale=1.0).item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "0.0\n", done.stderr
