"""Copies to devices that this machine need not have."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ral_system.device_kind import to_device


class Recorded:
    """A tensor of a device that notes what is done to it."""

    def __init__(self, kind: str, done: list[Any]) -> None:
        self.device, self._done = SimpleNamespace(type=kind), done

    def pin_memory(self) -> "Recorded":
        self._done.append("pinned")
        return self

    def to(self, device: Any, *, non_blocking: bool = False) -> "Recorded":
        self._done.append((str(device), non_blocking))
        return self


@pytest.mark.parametrize(
    ("at", "device", "expected"),
    [
        ("cpu", torch.device("cuda", 0), ["pinned", ("cuda:0", True)]),
        ("cpu", "cuda", ["pinned", ("cuda", True)]),
        ("cuda", torch.device("cuda", 0), [("cuda:0", False)]),
        ("cpu", torch.device("cpu"), [("cpu", False)]),
        ("meta", "cuda", [("cuda", False)]),
    ],
)
def test_what_goes_from_host_to_gpu_is_pinned_and_nothing_else(at: str, device: Any, expected: list[Any]) -> None:
    done: list[Any] = []
    to_device(Recorded(at, done), device)  # type: ignore[arg-type]
    assert done == expected


def test_a_copy_on_the_same_device_is_the_tensor_itself() -> None:
    tensor = torch.ones(3)
    assert to_device(tensor, "cpu") is tensor
    assert to_device(tensor, "meta").is_meta
