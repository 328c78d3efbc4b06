"""Qwen2.5-VL under another name, with pictures of one size: how a package adds a family of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from ral_system.config.data import FilesConfig
from ral_system.errors import DataError
from ral_system.families.family import Features
from ral_system.families.qwen_vl.family import QwenVl
from ral_system.types import Layout, Media, MediaKind, View

SIDE_PX = 56


class OwnVlConfig(Qwen2_5_VLConfig):
    """The configuration of the toy's models."""

    model_type = "own_vl"


class OwnVlForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """The toy's model, which transformers finds by its configuration."""

    config_class = OwnVlConfig


AutoConfig.register("own_vl", OwnVlConfig)
AutoModelForImageTextToText.register(OwnVlConfig, OwnVlForConditionalGeneration)


@dataclass(frozen=True)
class OneSize:
    """Every picture has the same size."""

    side_px: int = SIDE_PX

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size, whatever the picture's."""
        return self.side_px, self.side_px


class OwnVl(QwenVl):
    """The toy's family: pictures are 2 × 2 tokens, and there are no videos."""

    model_types: ClassVar[tuple[str, ...]] = ("own_vl",)

    def layout(self, media: Media) -> Layout:
        """Lay out a picture as one square of tokens. Raises DataError for a video."""
        if media.clip is not None:
            raise DataError("own_vl reads no videos; leave such questions out")
        side = SIDE_PX // self.processor.image_processor.patch_size // self.processor.image_processor.merge_size
        return Layout("image", (View(side, side),))

    def pixel_budgets(self, data: FilesConfig) -> dict[MediaKind, Any]:
        """One size for all."""
        return {"image": OneSize(), "video": OneSize()}

    def features(self, media: Sequence[Media], pixels: Sequence[Any]) -> list[Features]:
        """Resize pictures before the processor sees them."""
        return super().features(media, [picture.resize((SIDE_PX, SIDE_PX)) for picture in pixels])

    def engine_media(self, media: Media, pixels: Any) -> Any:
        """Resize the picture for the rollout engine as well."""
        return pixels.resize((SIDE_PX, SIDE_PX))
