"""Random norms and biases, which a fresh model has at 1 and 0: so a test sees where one is left out."""

import torch
from torch import nn


@torch.no_grad()
def perturb(model: nn.Module, scale: float = 0.1) -> None:
    """Add noise to every parameter of one dimension, and to those that are all zero."""
    for parameter in model.parameters():
        if parameter.squeeze().ndim <= 1 or not parameter.any():
            parameter.add_(scale * torch.randn_like(parameter))
