"""SmolVLM2, SmolVLM and Idefics3: pictures in tiles with markers before each, the whole picture last; no videos."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ral_system.attention.sequence import SequenceGroup
from ral_system.config.data import FilesConfig
from ral_system.errors import ConfigError, SetupError
from ral_system.families.family import Encoded, Family, Features, Occurrences, PixelBudget
from ral_system.families.tiles import seen_tiles
from ral_system.types import Layout, Media, MediaKind, View

_TILE_MARKER = re.compile(r"<row_\d+_col_\d+>")
_LARGEST_PX = 4096
"""Longest side to which the processors enlarge a picture."""


@dataclass(frozen=True, slots=True)
class LongSideBudget:
    """Pictures are enlarged or reduced until their longer side is `edge_px`, and squashed into whole tiles."""

    tile_px: int
    edge_px: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height as the model sees them, which its processor leaves alone."""
        columns, rows = self.grid(width, height)
        return columns * self.tile_px, rows * self.tile_px

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of tiles, by the processor's arithmetic: the shorter side is rounded to even pixels."""
        shape = width / height
        short_px = int(self.edge_px / shape if shape >= 1 else self.edge_px * shape)
        long, short = self.edge_px // self.tile_px, max(1, math.ceil((short_px + short_px % 2) / self.tile_px))
        return (long, short) if shape >= 1 else (short, long)


class SmolVlm(Family):
    """SmolVLM and SmolVLM2 (arXiv 2504.05299) and Idefics3 (arXiv 2408.12637), SigLIP with Llama.

    The longer side of a picture is always as long, in tiles. They go row by row, and a view of the whole picture
    follows if there are several. Each is one run of tokens with its own marker before it.
    """

    model_types: ClassVar[tuple[str, ...]] = ("smolvlm", "idefics3")
    card_note = (
        "Its processor needs the package num2words. In training, patches of pictures had the position embeddings that "
        "vLLM gives them. transformers rounds the places of some patches otherwise, and its answers can differ."
    )
    attention_classes: ClassVar[tuple[str, ...]] = ("LlamaAttention",)
    max_media: ClassVar[Mapping[MediaKind, int]] = {**Family.max_media, "video": 0}  # as vLLM has it

    def __init__(self, config: PretrainedConfig, processor: Any) -> None:
        super().__init__(config, processor)
        vision, images = config.vision_config, processor.image_processor
        tile_px, edge_px = vision.image_size, images.size["longest_edge"]
        self._patches = tile_px // vision.patch_size
        self._side = self._patches // config.scale_factor
        if not images.do_image_splitting:
            edge_px = tile_px  # one view, whatever the size
        self._budget = LongSideBudget(tile_px, edge_px or 0)
        if images.max_image_size["longest_edge"] != tile_px or processor.image_seq_len != self._side**2:
            raise SetupError(
                f"vision_config.image_size={tile_px} of the model makes {self._side**2} tokens of a tile of "
                f"{tile_px}x{tile_px} px, but its processor has max_image_size={dict(images.max_image_size)} and "
                f"image_seq_len={processor.image_seq_len}; copy the model again"
            )
        if not edge_px or edge_px % tile_px or edge_px > _LARGEST_PX or tile_px % 2:
            raise SetupError(
                f"size={dict(images.size)} of the model's processor: only a longest_edge of whole tiles of {tile_px} "
                f"px up to {_LARGEST_PX} is served, with tiles of even size, as the published models have them; set it "
                f"to {max(1, min(edge_px or tile_px, _LARGEST_PX) // tile_px) * tile_px}"
            )

    @property
    def visual_ids(self) -> Mapping[MediaKind, int]:
        return {"image": self.processor.image_token_id}

    @property
    def placeholders(self) -> Mapping[MediaKind, str]:
        return {"image": self.processor.image_token}

    @property
    def banned_ids(self) -> tuple[int, ...]:
        names = self.processor.image_token, self.processor.fake_image_token, self._whole_marker
        own = {self.tokenizer.convert_tokens_to_ids(name) for name in names}
        return tuple(
            sorted(own | {id for name, id in self.tokenizer.get_vocab().items() if _TILE_MARKER.fullmatch(name)})
        )

    @property
    def _whole_marker(self) -> str:
        """What stands before the view of the whole picture."""
        name = "global_image_token" if hasattr(self.processor, "global_image_token") else "global_image_tag"
        return str(getattr(self.processor, name))

    def expanded(self, media: Media) -> str:
        columns, rows = self._budget.grid(media.width_px, media.height_px)
        fake, view = self.processor.fake_image_token, self.processor.image_token * self._side**2
        whole = f"{fake}{self._whole_marker}{view}{fake}"
        if columns * rows == 1:
            return whole
        tiles = (
            "".join(f"{fake}<row_{row + 1}_col_{column + 1}>{view}" for column in range(columns)) for row in range(rows)
        )
        return "\n".join((*tiles, f"\n{whole}"))

    def layout(self, media: Media) -> Layout:
        columns, rows = self._budget.grid(media.width_px, media.height_px)
        whole = View(self._side, self._side)
        if columns * rows == 1:
            return Layout("image", (whole,))
        tiles = (
            View(self._side, self._side, box=(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows))
            for r in range(rows)
            for c in range(columns)
        )
        return Layout("image", (*tiles, whole), separated=True)

    @property
    def pixels_per_token(self) -> int:
        return (self._budget.tile_px // self._side) ** 2

    @property
    def picture_bounds(self) -> tuple[int, int]:
        tile_px, edge_px = self._budget.tile_px, self._budget.edge_px
        return tile_px * edge_px, edge_px**2

    def pixel_budgets(self, data: FilesConfig) -> dict[MediaKind, PixelBudget]:
        """Return the processor's budget for pictures. Raises ConfigError if bounds exclude a size that it makes."""
        least, most = self.picture_bounds
        low, high = data.image.min_pixels, data.image.max_pixels
        if (low is not None and low > least) or (high is not None and high < most):
            name, value = ("min_pixels", low) if low is not None and low > least else ("max_pixels", high)
            raise ConfigError(
                f"data.image.{name}={value}: the model's processor makes {least} to {most} pixels of any picture; set "
                "it to null, or change size.longest_edge in preprocessor_config.json of the model"
            )
        return {"image": self._budget}

    def features(self, media: Sequence[Media], pixels: Sequence[Any]) -> list[Features]:
        return [self._tiles(picture) for picture in pixels]

    def _tiles(self, picture: Any) -> Features:
        tiles = self.processor.image_processor(images=[[picture]], return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": tiles, "tiles": torch.tensor([[len(tiles)]])}

    def positions(self, visual: Tensor, layouts: Sequence[Layout]) -> Tensor:
        return torch.arange(len(visual))[None]

    def encode(self, model: Any, features: Features, sequence: SequenceGroup | None = None) -> Encoded:
        """Encode each picture: [views, tokens, E]. Without any, one black tile is encoded."""
        if not features:
            device, tile_px = next(model.vision_model.parameters()).device, self._budget.tile_px
            return {"image": (self._seen(model, torch.zeros(1, 3, tile_px, tile_px, device=device))[:0],)}
        tiles, counts = features["pixel_values"], features["tiles"]
        return {"image": tuple(seen_tiles(lambda own: self._seen(model, own), tiles, counts, sequence))}

    def _seen(self, model: Any, tiles: Tensor) -> Tensor:
        """[tiles, tokens, E]. Tiles are squares of the model's own size, so nothing is masked."""
        tower = model.vision_model
        patches = tower.embeddings.patch_embedding(tiles.to(model.dtype)).flatten(2).transpose(1, 2)
        places = tower.embeddings.position_embedding(patch_places(self._patches, tiles.device))
        hidden = tower.encoder(inputs_embeds=patches + places).last_hidden_state
        return model.connector(tower.post_layernorm(hidden))

    def inputs(self, encoded: Encoded, occurrences: Occurrences) -> dict[str, Any]:
        parts = [encoded[kind][i] for kind, i in occurrences] or encoded["image"]
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=torch.cat(parts))}}

    def vision_encoder(self, model: PreTrainedModel) -> nn.Module:
        return model.model.vision_model

    def projector(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        return (model.model.connector,)

    @property
    def patches_per_token(self) -> int:
        return self.config.scale_factor**2

    def vision_attention_flops(self, layout: Layout) -> int:
        """The patches of a tile attend to each other."""
        vision = self.config.vision_config
        return 4 * vision.hidden_size * vision.num_hidden_layers * len(layout.views) * self._patches**4

    def engine_media(self, media: Media, pixels: Any) -> Any:
        return pixels


def patch_places(side: int, device: torch.device | str = "cpu") -> Tensor:
    """Index of the position embedding of every patch of a full tile of `side` × `side`: int64 [side²].

    It is NaViT's (arXiv 2307.06304), i / side among the borders of `side` buckets, in the arithmetic of vLLM, where
    rounding moves some: of 27 places along an edge the eleventh has the tenth's embedding. transformers rounds
    otherwise, and in bfloat16 moves 6 of 27.
    """
    borders = torch.arange(1 / side, 1.0, 1 / side, device=device)
    bucket = torch.bucketize(torch.arange(side, device=device) / side, borders, right=True)
    return (bucket[:, None] * side + bucket).flatten()
