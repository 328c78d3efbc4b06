"""How large a picture reaches the model."""

from __future__ import annotations

from dataclasses import dataclass

from ral_system.config.data import FilesConfig
from ral_system.errors import ConfigError, DataError
from ral_system.types import MediaKind


@dataclass(frozen=True, slots=True)
class QwenPixelBudget:
    """Sides become multiples of `factor`, and their product lies within the bounds, as Qwen's processors have it, or as
    near to bounds that are close together as whole factors come.
    """

    factor: int
    min_pixels: int
    max_pixels: int
    processor: tuple[int, int] | None = None
    """Bounds to which the model's processor resizes what it is given; None: it resizes nothing."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height as the model sees them. Raises DataError for pictures too long and thin: for the bounds, or
        for the model's processor, which would not leave them so.
        """
        try:
            wide, tall = self.resized(width, height, self.min_pixels, self.max_pixels)
            fits = tall * wide <= self.max_pixels or min(tall, wide) > self.factor
            if self.processor is not None:
                wide, tall = self.resized(wide, tall, *self.processor)
                fits = fits and self.resized(wide, tall, *self.processor) == (wide, tall)
        except ValueError:
            fits = False
        if not fits:
            raise DataError(f"too long and thin: {width}x{height} px")
        return wide, tall

    def resized(self, width: int, height: int, low: int, high: int) -> tuple[int, int]:
        """Width and height within bounds of pixels. Raises ValueError for a picture too long and thin."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        tall, wide = smart_resize(height, width, self.factor, low, high)
        return wide, tall


def pixel_budgets(
    data: FilesConfig, factor: int, processor: tuple[int, int], of_pictures: type[QwenPixelBudget] = QwenPixelBudget
) -> dict[MediaKind, QwenPixelBudget]:
    """The configured bounds of pictures, each the image processor's own where it is null, and of frames.

    Raises ConfigError for a bound of pictures outside the processor's: it would resize them again, as it does not
    resize frames.
    """
    config, (low, high) = data.image, processor
    for name, value in (("min_pixels", config.min_pixels), ("max_pixels", config.max_pixels)):
        if value is not None and not low <= value <= high:
            raise ConfigError(
                f"data.image.{name}={value} is outside what the model's processor leaves alone, {low} to {high} "
                "pixels; set it inside, to null, or change preprocessor_config.json of the model"
            )
    pictures = of_pictures(
        factor,
        low if config.min_pixels is None else config.min_pixels,
        high if config.max_pixels is None else config.max_pixels,
        processor,
    )
    return {"image": pictures, "video": QwenPixelBudget(factor, data.video.min_pixels, data.video.max_pixels)}
