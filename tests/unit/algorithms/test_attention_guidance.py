import math

import pytest
import torch

from ral_system.algorithms.attention_guidance import attention_guidance


def test_by_hand() -> None:
    # one layer, two heads: mean attention on image keys 0.2 and 0.05, on system keys 0.1 and 0
    image, system = torch.tensor([[0.2, 0.05]]).log(), torch.tensor([[0.1, 0.0]]).log()
    enhance = -(math.log(0.2) + math.log(0.05)) / 2
    suppress = (math.log(0.1 + 1e-6) + math.log(1e-6)) / 2
    assert attention_guidance(image, system, image=0.15, system=0.0).item() == pytest.approx(0.15 * enhance)
    assert attention_guidance(image, system, image=0.15, system=0.3).item() == pytest.approx(
        0.15 * enhance + 0.3 * suppress, rel=1e-5
    )
    assert attention_guidance(image, None, image=1.0, system=1.0).item() == pytest.approx(enhance)


def test_more_attention_on_pictures_and_less_on_the_system_turn_lowers_it() -> None:
    image, system = torch.tensor([[-2.0]], requires_grad=True), torch.tensor([[-2.0]], requires_grad=True)
    attention_guidance(image, system, image=1.0, system=1.0).backward()
    assert image.grad is not None and system.grad is not None
    assert image.grad.item() == -1.0 and 0.9 < system.grad.item() < 1.0
