"""InternVL3 and InternVL3.5 in Hugging Face format: pictures in tiles, videos frame by frame, positions of one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ral_system.attention.sequence import SequenceGroup
from ral_system.config.data import FilesConfig
from ral_system.errors import SetupError
from ral_system.families.family import Encoded, Family, Features, Occurrences, PixelBudget
from ral_system.families.tiles import FrameBudget, seen_tiles, tile_budget, tile_grid
from ral_system.types import Layout, Media, MediaKind, View

_FEATURES: Mapping[MediaKind, tuple[str, str]] = {
    "image": ("pixel_values", "tiles"),
    "video": ("pixel_values_videos", "frames"),
}
"""For each kind the names of its pixels [tiles, 3, H, W], and of the numbers of tiles [media, 1]."""


class InternVl(Family):
    """InternVL3 (arXiv 2504.10479) and InternVL3.5 (arXiv 2508.18265) with Qwen text models.

    A picture is cut into tiles, row by row, and is seen once more as a whole, if there are several. A frame of a video
    is one tile, with its number before it.
    """

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    attention_classes: ClassVar[tuple[str, ...]] = ("Qwen2Attention", "Qwen3Attention")
    joins_text: ClassVar[bool] = True

    def __init__(self, config: PretrainedConfig, processor: Any) -> None:
        super().__init__(config, processor)
        vision, images = config.vision_config, processor.image_processor
        self._tile_px = vision.image_size[0]
        self._bounds = images.min_patches, images.max_patches
        self._patches = self._tile_px // vision.patch_size[0]
        self._side = round(self._patches * config.downsample_ratio)
        self._video_id = self.tokenizer.convert_tokens_to_ids(processor.video_token)
        square = {self._tile_px, *vision.image_size, images.size["height"], images.size["width"]}
        if len(square) > 1 or processor.image_seq_length != self._side**2:
            raise SetupError(
                f"vision_config.image_size={vision.image_size} of the model makes {self._side**2} tokens of a tile of "
                f"{self._tile_px}x{self._tile_px} px, but its processor has size={dict(images.size)} and "
                f"image_seq_length={processor.image_seq_length}; copy the model again"
            )
        if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "default":
            raise SetupError(
                f"vision_feature_layer={config.vision_feature_layer} and "
                f"vision_feature_select_strategy={config.vision_feature_select_strategy} are not served for internvl: "
                "vLLM reads the patches of the last layer; use a model with -1 and default"
            )

    @property
    def visual_ids(self) -> Mapping[MediaKind, int]:
        return dict.fromkeys(_FEATURES, self.processor.image_token_id)

    @property
    def placeholders(self) -> Mapping[MediaKind, str]:
        return {"image": self.processor.image_token, "video": self.processor.video_token}

    @property
    def banned_ids(self) -> tuple[int, ...]:
        return tuple(sorted({*self.processor.image_token_ids, self._video_id}))

    def expanded(self, media: Media) -> str:
        if media.clip is None:
            return self._enclosed(self.tokens(media))
        return "\n".join(f"Frame{i + 1}: {self._enclosed(self._side**2)}" for i in range(media.frames))

    def _enclosed(self, tokens: int) -> str:
        names = self.processor
        return f"{names.start_image_token}{names.image_token * tokens}{names.end_image_token}"

    def layout(self, media: Media) -> Layout:
        """The processor squashes a picture into whole tiles, and a frame into one."""
        if media.clip is not None:
            views = (View(self._side, self._side, i, time) for i, time in enumerate(media.clip.times_s))
            return Layout("video", tuple(views), separated=True)
        columns, rows = tile_grid(media.width_px, media.height_px, self._tile_px, *self._bounds)
        tiles = [
            View(self._side, self._side, box=(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows))
            for r in range(rows)
            for c in range(columns)
        ]
        return Layout("image", (*tiles, View(self._side, self._side)) if len(tiles) > 1 else tuple(tiles))

    @property
    def pixels_per_token(self) -> int:
        return self._tile_px**2 // self._side**2

    @property
    def picture_bounds(self) -> tuple[int, int]:
        least, most = self._bounds
        return least * self._tile_px**2, most * self._tile_px**2

    def pixel_budgets(self, data: FilesConfig) -> dict[MediaKind, PixelBudget]:
        frames = FrameBudget(self._tile_px, (data.video.min_pixels, data.video.max_pixels))
        return {"image": tile_budget(data, self._tile_px, self._bounds), "video": frames}

    def features(self, media: Sequence[Media], pixels: Sequence[Any]) -> list[Features]:
        return [
            self._features("image", self._tiles(of)) if medium.clip is None else self._features("video", self._tile(of))
            for medium, of in zip(media, pixels, strict=True)
        ]

    def _tiles(self, picture: Any) -> Tensor:
        found = self.processor.image_processor(images=[picture], crop_to_patches=True, return_tensors="pt")
        return found["pixel_values"]

    def _tile(self, frames: Any) -> Tensor:
        found = self.processor.video_processor(
            videos=[frames], input_data_format="channels_last", do_sample_frames=False, return_tensors="pt"
        )
        return found["pixel_values_videos"][0]

    def _features(self, kind: MediaKind, tiles: Tensor) -> Features:
        pixels, counts = _FEATURES[kind]
        return {pixels: tiles, counts: torch.tensor([[len(tiles)]])}

    def positions(self, visual: Tensor, layouts: Sequence[Layout]) -> Tensor:
        return torch.arange(len(visual))[None]

    def encode(self, model: Any, features: Features, sequence: SequenceGroup | None = None) -> Encoded:
        """Encode each medium: [tokens, E]. Without any, one black tile is encoded."""
        names = [of_kind for of_kind in _FEATURES.values() if of_kind[0] in features]
        if not names:
            device = next(model.vision_tower.parameters()).device
            black = torch.zeros(1, 3, self._tile_px, self._tile_px, device=device)
            return {"image": (self._seen(model, black).flatten(0, 1)[:0],)}
        counts = torch.cat([features[count] for _, count in names])
        tiles = torch.cat([features[pixels] for pixels, _ in names])
        found = iter(seen_tiles(lambda own: self._seen(model, own), tiles, counts, sequence))
        return {
            kind: tuple(next(found).flatten(0, 1) for _ in features[count])
            for kind, (pixels, count) in _FEATURES.items()
            if pixels in features
        }

    def _seen(self, model: Any, tiles: Tensor) -> Tensor:
        """[tiles, tokens, E]"""
        return model.get_image_features(tiles, return_dict=True).pooler_output

    def inputs(self, encoded: Encoded, occurrences: Occurrences) -> dict[str, Any]:
        parts = [encoded[kind][i] for kind, i in occurrences] or encoded["image"]
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=torch.cat(parts)[None])}}

    def vision_encoder(self, model: PreTrainedModel) -> nn.Module:
        return model.model.vision_tower

    def projector(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        return (model.model.multi_modal_projector,)

    @property
    def patches_per_token(self) -> int:
        return (self._patches // self._side) ** 2

    def vision_attention_flops(self, layout: Layout) -> int:
        """The patches of a tile and its class token attend to each other."""
        vision = self.config.vision_config
        pairs = len(layout.views) * (self._patches**2 + 1) ** 2
        return 4 * vision.hidden_size * vision.num_hidden_layers * pairs

    def engine_media(self, media: Media, pixels: Any) -> Any:
        return pixels

    def expansion_problem(
        self, token_ids: Sequence[int], engine_ids: Sequence[int], media: Sequence[Media]
    ) -> str | None:
        """A video begins with text, the number of its first frame."""
        if all(medium.clip is None for medium in media) or self.expanded_apart(engine_ids, media) == [*token_ids]:
            return None
        return (
            "the text before a video shares a token with the number of its first frame, which vLLM splits; put "
            "<video> at the start of the question or of a line"
        )

    def seen_ids(self, engine_ids: Sequence[int]) -> tuple[int, ...]:
        """vLLM repeats the placeholder of a video where the processor has visual tokens."""
        visual = self.processor.image_token_id
        return tuple(visual if token == self._video_id else token for token in engine_ids)
