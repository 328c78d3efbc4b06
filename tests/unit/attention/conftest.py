"""Triton's kernels run in its interpreter where there is no GPU."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as patch:  # for the import, which decides, and below for calls; not for all tests
        patch.setitem(os.environ, "TRITON_INTERPRET", "1")
        import ral_system.attention.fused  # noqa: F401


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
