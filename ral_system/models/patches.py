"""Vision encoders made faster: patch embeddings as matrix products, windows of attention in one call.

Suffixes: N patches, C channels, T frames, H × W pixels, E features.
"""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from ral_system.attention.probe import VISION_IMPLEMENTATION


class PatchProduct(nn.Conv3d):
    """A convolution over patches that are as large as its kernel: one matrix product, several times as fast on CPUs."""

    def forward(self, patches_NCTHW: Tensor) -> Tensor:
        """Return [N, E, 1, 1, 1]. Raises RuntimeError for patches of another size."""
        features_NE = nn.functional.linear(patches_NCTHW.flatten(1), self.weight.flatten(1), self.bias)
        return features_NE[:, :, None, None, None]


def embed_patches_by_product(model: nn.Module) -> None:
    """Turn the model's patch embeddings, three-dimensional convolutions that never overlap, into matrix products."""
    for module in model.modules():
        if type(module) is nn.Conv3d and module.stride == module.kernel_size:
            module.__class__ = PatchProduct


def attend_to_segments_together(model: nn.Module) -> None:
    """Let attention modules that are told where segments end (Qwen's vision encoders) pass all segments in one call."""
    for module in model.modules():
        if "cu_seqlens" in inspect.signature(module.forward).parameters and hasattr(module, "is_causal"):
            module.config._attn_implementation = VISION_IMPLEMENTATION  # type: ignore[union-attr]
