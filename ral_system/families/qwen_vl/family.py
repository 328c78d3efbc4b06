"""Qwen2-VL and Qwen2.5-VL: one placeholder token repeated, M-RoPE, pictures and frames through one encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ral_system.attention.sequence import SequenceGroup
from ral_system.config.data import FilesConfig
from ral_system.families.family import Encoded, Family, Features, Occurrences
from ral_system.families.qwen_vl.pixel_budget import QwenPixelBudget, pixel_budgets
from ral_system.families.qwen_vl.positions import rope_positions, seconds_per_grid
from ral_system.families.qwen_vl.vision import encoded_media, in_places
from ral_system.types import Layout, Media, MediaKind, View


class QwenVl(Family):
    """Qwen2-VL and Qwen2.5-VL (arXiv 2409.12191, 2502.13923)."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    attention_classes: ClassVar[tuple[str, ...]] = ("Qwen2VLAttention", "Qwen2_5_VLAttention", "Qwen2Attention")
    frames_per_view = 2
    pixel_budget: ClassVar[type[QwenPixelBudget]] = QwenPixelBudget
    """The rule by which the processor resizes pictures."""
    frame_settings: ClassVar[Mapping[str, Any]] = {
        "do_sample_frames": False,
        "do_resize": False,
        "cap_pixels_per_frame": False,
    }
    """The video processor's, for frames that come sampled and resized from the store."""

    def __init__(self, config: PretrainedConfig, processor: Any) -> None:
        super().__init__(config, processor)
        images = processor.image_processor
        self._factor = images.patch_size * images.merge_size
        self._bounds = self.bounds(images.size)
        self._budget = self.pixel_budget(self._factor, *self._bounds)
        # What a second is worth in positions; Qwen2-VL does not count in seconds.
        self._positions_per_second: float | None = getattr(config.vision_config, "tokens_per_second", None)

    @staticmethod
    def bounds(size: Mapping[str, int]) -> tuple[int, int]:
        """Smallest and largest number of pixels that the processor's `size` leaves a picture."""
        return size["shortest_edge"], size["longest_edge"]

    @property
    def visual_ids(self) -> Mapping[MediaKind, int]:
        return {"image": self.processor.image_token_id, "video": self.processor.video_token_id}

    @property
    def placeholders(self) -> Mapping[MediaKind, str]:
        return {"image": self.processor.image_token, "video": self.processor.video_token}

    @property
    def banned_ids(self) -> tuple[int, ...]:
        enclosing = (self.config.vision_start_token_id, self.config.vision_end_token_id)
        return tuple(sorted({*self.visual_ids.values(), *enclosing}))

    def expanded(self, media: Media) -> str:
        return self.placeholders[media.kind] * self.tokens(media)

    def layout(self, media: Media) -> Layout:
        """The processor resizes pictures to its own bounds; frames are taken as they are, two merged into one."""
        if media.clip is None:
            width, height = self._budget.size(media.width_px, media.height_px)
            return Layout("image", (View(height // self._factor, width // self._factor),))
        rows, columns = media.height_px // self._factor, media.width_px // self._factor
        seconds = seconds_per_grid(media.clip)
        views = (View(rows, columns, i, i * seconds) for i in range(-(-media.frames // self.frames_per_view)))
        return Layout("video", tuple(views))

    @property
    def pixels_per_token(self) -> int:
        return self._factor**2

    @property
    def picture_bounds(self) -> tuple[int, int]:
        return self._bounds

    def pixel_budgets(self, data: FilesConfig) -> dict[MediaKind, QwenPixelBudget]:
        return pixel_budgets(data, self._factor, self._bounds, self.pixel_budget)

    def features(self, media: Sequence[Media], pixels: Sequence[Any]) -> list[Features]:
        pairs = list(zip(media, pixels, strict=True))
        of_images = iter(self._image_features([of for medium, of in pairs if medium.clip is None]))
        of_videos = iter(self._video_features([of for medium, of in pairs if medium.clip is not None]))
        return [next(of_images if medium.clip is None else of_videos) for medium in media]

    def _image_features(self, pictures: list[Any]) -> list[Features]:
        if not pictures:
            return []
        found = self.processor.image_processor(images=pictures, return_tensors="pt")
        return _by_medium(found, "pixel_values", "image_grid_thw")

    def _video_features(self, videos: list[Any]) -> list[Features]:
        if not videos:
            return []
        found = self.processor.video_processor(
            videos=videos, input_data_format="channels_last", return_tensors="pt", **self.frame_settings
        )
        return _by_medium(found, "pixel_values_videos", "video_grid_thw")

    def positions(self, visual: Tensor, layouts: Sequence[Layout]) -> Tensor:
        return rope_positions(visual, layouts, positions_per_second=self._positions_per_second)

    def encode(self, model: Any, features: Features, sequence: SequenceGroup | None = None) -> Encoded:
        encoded = encoded_media(model, features, sequence, lambda found: (found.pooler_output,))
        return {kind: tuple(whole for (whole,) in of_kind) for kind, of_kind in encoded.items()}

    def inputs(self, encoded: Encoded, occurrences: Occurrences) -> dict[str, Any]:
        parts = in_places(encoded, occurrences)
        outputs = {kind: BaseModelOutputWithPooling(pooler_output=part) for kind, part in parts.items()}
        return {"mm_encoder_outputs": outputs}

    def vision_encoder(self, model: PreTrainedModel) -> nn.Module:
        return model.model.visual

    def projector(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        return (model.model.visual.merger,)

    @property
    def patches_per_token(self) -> int:
        return self.config.vision_config.spatial_merge_size**2

    def vision_attention_flops(self, layout: Layout) -> int:
        """Every view attends to itself; in Qwen2.5-VL most layers do so within windows."""
        vision, merged = self.config.vision_config, self.patches_per_token**2
        whole = sum((view.rows * view.columns) ** 2 for view in layout.views)
        windows, window = whole, getattr(vision, "window_size", None)
        if window is not None:
            cells = window // vision.spatial_merge_size // vision.patch_size
            windows = sum(_windowed_pairs(view.rows, view.columns, cells) for view in layout.views)
        unwindowed = len(getattr(vision, "fullatt_block_indexes", range(vision.depth)))
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        return 4 * width * merged * (unwindowed * whole + (vision.depth - unwindowed) * windows)

    def engine_media(self, media: Media, pixels: Any) -> Any:
        if media.clip is None:
            return pixels
        metadata = {
            "fps": self.frames_per_view / seconds_per_grid(media.clip),  # vLLM turns it into seconds per view again
            "total_num_frames": len(pixels),
            "frames_indices": list(range(len(pixels))),
        }
        return pixels, metadata

    def engine_arguments(self) -> dict[str, Any]:
        return {"mm_processor_kwargs": {"videos_kwargs": dict(self.frame_settings)}}


def _windowed_pairs(rows: int, columns: int, window: int) -> int:
    """Pairs within windows of `window` × `window` cells, cut off at the right and the bottom, of a grid of cells."""

    def squares(cells: int) -> int:
        return cells // window * window**2 + (cells % window) ** 2

    return squares(rows) * squares(columns)


def _by_medium(found: Mapping[str, Tensor], pixels: str, grids: str) -> list[Features]:
    """Split a processor's output by medium: patches [N, F] and the grid of patches [1, 3] of each."""
    parts = found[pixels].split(found[grids].prod(-1).tolist())
    return [{pixels: part, grids: torch.atleast_2d(grid)} for part, grid in zip(parts, found[grids], strict=True)]
