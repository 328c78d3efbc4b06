"""Triton's kernels run in its interpreter where there is no GPU; small models whose attention is read."""

import os
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from tests.unit.attention.probed import FAMILIES

if not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as patch:  # for the import, which decides, and below for calls; not for all tests
        patch.setitem(os.environ, "TRITON_INTERPRET", "1")
        import ral_system.attention.fused  # noqa: F401


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    return {name: build().eval() for name, build in FAMILIES.items()}


@pytest.fixture
def load(models: dict[str, PreTrainedModel]) -> Callable[[str, str], PreTrainedModel]:
    def loaded(family: str, implementation: str) -> PreTrainedModel:
        models[family].set_attn_implementation(implementation)
        return models[family]

    return loaded
