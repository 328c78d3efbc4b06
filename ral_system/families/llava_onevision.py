"""LLaVA-OneVision: a whole picture, its rows of tiles without padding, each row of tokens with an end of line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.image_processing_utils import select_best_resolution
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ral_system.attention.sequence import SequenceGroup
from ral_system.config.data import FilesConfig
from ral_system.errors import SetupError
from ral_system.families.family import Encoded, Family, Features, Occurrences, PixelBudget
from ral_system.families.qwen_vl.vision import in_places
from ral_system.families.tiles import FrameBudget, resolution_budget, seen_tiles
from ral_system.types import EngineNames, Layout, Media, MediaKind, View

_MOST_TILES = 9
"""Tiles whose tokens are not reduced, which vLLM takes for granted."""


class LlavaOneVision(Family):
    """LLaVA-OneVision (arXiv 2408.03326) with SigLIP and Qwen2.

    A picture is seen whole, and as large as fits one of the model's resolutions, in tiles. The tiles' tokens are laid
    out as one rectangle, without those of the padding, and reduced to those of about nine tiles. A token that every row
    shares ends it. A frame of a video is one tile with a quarter of its tokens; one such token ends the video.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    attention_classes: ClassVar[tuple[str, ...]] = ("Qwen2Attention",)
    engine_names: ClassVar[EngineNames] = EngineNames(
        prefixes={"model.vision_tower.": "model.vision_tower.vision_model."},
        unused=("model.vision_tower.post_layernorm.",),
    )

    def __init__(self, config: PretrainedConfig, processor: Any) -> None:
        super().__init__(config, processor)
        vision, images = config.vision_config, processor.image_processor
        self._tile_px = vision.image_size
        self._side = vision.image_size // vision.patch_size
        self._resolutions = tuple((height, width) for height, width in config.image_grid_pinpoints)
        expected = {
            "num_image_tokens": self._side**2,
            "image_grid_pinpoints": self._resolutions,
            "size": {"height": self._tile_px, "width": self._tile_px},
            "vision_aspect_ratio": f"anyres_max_{_MOST_TILES}",
            "vision_feature_select_strategy": "full",
        }
        found = {
            "num_image_tokens": processor.num_image_tokens,
            "image_grid_pinpoints": tuple((height, width) for height, width in images.image_grid_pinpoints),
            "size": {"height": images.size["height"], "width": images.size["width"]},
            "vision_aspect_ratio": processor.vision_aspect_ratio,
            "vision_feature_select_strategy": processor.vision_feature_select_strategy,
        }
        for name, value in found.items():
            if value != expected[name]:
                raise SetupError(
                    f"{name}={value} in the processor's files of a llava_onevision model: the model and vLLM read "
                    f"pictures with {expected[name]}; copy the model again"
                )
        own = (config.vision_feature_layer, config.vision_feature_select_strategy, config.vision_aspect_ratio)
        if own != (-1, "full", f"anyres_max_{_MOST_TILES}"):
            raise SetupError(
                f"config.json of a llava_onevision model has vision_feature_layer={own[0]}, "
                f"vision_feature_select_strategy={own[1]} and vision_aspect_ratio={own[2]}; only -1, full and "
                f"anyres_max_{_MOST_TILES} are served, as the published models have them"
            )

    @property
    def visual_ids(self) -> Mapping[MediaKind, int]:
        return {"image": self.processor.image_token_id, "video": self.processor.video_token_id}

    @property
    def placeholders(self) -> Mapping[MediaKind, str]:
        return {"image": self.processor.image_token, "video": self.processor.video_token}

    @property
    def banned_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self.visual_ids.values()))

    def expanded(self, media: Media) -> str:
        return self.placeholders[media.kind] * self.tokens(media)

    def layout(self, media: Media) -> Layout:
        if media.clip is not None:
            side, times = -(-self._side // 2), media.clip.times_s
            frames = [View(side, side, i, time) for i, time in enumerate(times)]
            end = View(1, 0, len(times) - 1, times[-1], line_end=True)
            return Layout("video", (*frames, end), patches=len(times) * self._side**2)
        height, width = select_best_resolution((media.height_px, media.width_px), list(self._resolutions))
        fine = self._fine(media, height // self._tile_px, width // self._tile_px)
        tiles = 1 + height * width // self._tile_px**2
        return Layout("image", (View(self._side, self._side), fine), patches=tiles * self._side**2)

    def _fine(self, media: Media, down: int, across: int) -> View:
        """The tokens of `down` × `across` tiles that are not of the padding above and below, or left and right."""
        rows, columns = self._side * down, self._side * across
        left, top, right, bottom = 0.0, 0.0, 1.0, 1.0
        if media.width_px / media.height_px > columns / rows:
            rows, top, bottom = _unpadded(rows, media.height_px * (columns / media.width_px))
        else:
            columns, left, right = _unpadded(columns, media.width_px * (rows / media.height_px))
        ratio = math.sqrt(rows * columns / (_MOST_TILES * self._side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
        return View(rows, columns, box=(left, top, right, bottom), line_end=True)

    @property
    def pixels_per_token(self) -> int:
        return (self._tile_px // self._side) ** 2

    @property
    def picture_bounds(self) -> tuple[int, int]:
        areas = [height * width for height, width in self._resolutions]
        return min(areas), max(areas)

    def pixel_budgets(self, data: FilesConfig) -> dict[MediaKind, PixelBudget]:
        frames = FrameBudget(self._tile_px, (data.video.min_pixels, data.video.max_pixels))
        return {"image": resolution_budget(data, self._resolutions), "video": frames}

    def features(self, media: Sequence[Media], pixels: Sequence[Any]) -> list[Features]:
        return [
            self._tiles(of) if medium.clip is None else self._frames(of)
            for medium, of in zip(media, pixels, strict=True)
        ]

    def _tiles(self, picture: Any) -> Features:
        found = self.processor.image_processor(images=[picture], return_tensors="pt")  # flat: a list of lists is whole
        tiles = found["pixel_values"][0]
        return {"pixel_values": tiles, "image_sizes": found["image_sizes"], "tiles": torch.tensor([[len(tiles)]])}

    def _frames(self, frames: Any) -> Features:
        found = self.processor.video_processor(
            videos=[frames], input_data_format="channels_last", do_sample_frames=False, return_tensors="pt"
        )
        return {"pixel_values_videos": found["pixel_values_videos"][0], "frames": torch.tensor([[len(frames)]])}

    def positions(self, visual: Tensor, layouts: Sequence[Layout]) -> Tensor:
        return torch.arange(len(visual))[None]

    def encode(self, model: Any, features: Features, sequence: SequenceGroup | None = None) -> Encoded:
        """Encode each medium: [tokens, E]. Without any, one black tile is encoded."""
        names = [pair for pair in (("pixel_values", "tiles"), ("pixel_values_videos", "frames")) if pair[0] in features]
        if not names:
            device = next(model.vision_tower.parameters()).device
            black = torch.zeros(1, 3, self._tile_px, self._tile_px, device=device)
            nothing = self._seen(model, black)[0, :0]
            return {"image": (torch.cat([nothing, model.image_newline[None][:0]]),)}
        counts = torch.cat([features[count] for _, count in names])
        tiles = torch.cat([features[pixels] for pixels, _ in names])
        seen = seen_tiles(lambda own: self._seen(model, own), tiles, counts, sequence)
        pictures = len(features.get("tiles", ()))
        found: Encoded = {}
        if pictures:
            sizes, newline = features["image_sizes"].tolist(), model.image_newline
            packed, _ = model.pack_image_features(
                seen[:pictures], sizes, newline, vision_aspect_ratio=model.config.vision_aspect_ratio
            )
            found["image"] = tuple(packed)
        if videos := seen[pictures:]:
            found["video"] = tuple(
                torch.cat([model.apply_pooling(frames).flatten(0, 1), model.image_newline[None]]) for frames in videos
            )
        return found

    def _seen(self, model: Any, tiles: Tensor) -> Tensor:
        """[tiles, patches, E]"""
        tower = model.vision_tower(tiles.to(model.dtype), output_hidden_states=True, return_dict=True)
        return model.multi_modal_projector(tower.hidden_states[-1])

    def inputs(self, encoded: Encoded, occurrences: Occurrences) -> dict[str, Any]:
        outputs = {}
        for kind, parts in in_places(encoded, occurrences).items():
            seen = parts if kind == "image" else torch.cat(parts)[None]
            outputs[kind] = BaseModelOutputWithPooling(pooler_output=seen)
        return {"mm_encoder_outputs": outputs}

    def vision_encoder(self, model: PreTrainedModel) -> nn.Module:
        return model.model.vision_tower

    def projector(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        return model.model.multi_modal_projector, nn.ParameterList([model.model.image_newline])

    @property
    def patches_per_token(self) -> int:
        return 1

    def vision_attention_flops(self, layout: Layout) -> int:
        """The patches of a tile attend to each other."""
        vision = self.config.vision_config
        assert layout.patches is not None
        return 4 * vision.hidden_size * vision.num_hidden_layers * layout.patches * self._side**2

    def engine_media(self, media: Media, pixels: Any) -> Any:
        return pixels


def _unpadded(tokens: int, of_picture: float) -> tuple[int, float, float]:
    """Kept tokens along one side of `tokens`, and where in the picture they begin and end.

    The picture fills `of_picture` tokens in the middle.
    """
    padding = (tokens - int(round(of_picture, 7))) // 2
    kept = tokens - 2 * padding
    start = (padding - (tokens - of_picture) / 2) / of_picture
    return kept, start, start + kept / of_picture
