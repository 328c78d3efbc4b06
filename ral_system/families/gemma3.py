"""Gemma 3: pictures of one size whose tokens attend in both directions, and sliding windows in five of six layers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ral_system.attention.sequence import SequenceGroup
from ral_system.config.choices import Device, Dtype
from ral_system.config.data import FilesConfig
from ral_system.errors import SetupError
from ral_system.families.family import Encoded, Family, Features, Occurrences, PixelBudget
from ral_system.families.tiles import seen_tiles, tile_budget
from ral_system.types import EngineNames, Layout, Media, MediaKind, View


class Gemma3(Family):
    """Gemma 3 (arXiv 2503.19786) with SigLIP.

    A picture is squashed to one size and becomes as many tokens, which attend to each other in both directions. The
    chat template writes `<start_of_image>` for it, which is not the token that stands for what the encoder sees.
    """

    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    attention_classes: ClassVar[tuple[str, ...]] = ("Gemma3Attention",)
    max_media: ClassVar[Mapping[MediaKind, int]] = {**Family.max_media, "video": 0}
    bidirectional: ClassVar[bool] = True
    joins_text: ClassVar[bool] = True
    engine_names: ClassVar[EngineNames] = EngineNames(
        prefixes={"model.vision_tower.": "model.vision_tower.vision_model."}
    )

    def __init__(self, config: PretrainedConfig, processor: Any) -> None:
        super().__init__(config, processor)
        text, vision, images = config.get_text_config(), config.vision_config, processor.image_processor
        self._side_px = vision.image_size
        self._patches = vision.image_size // vision.patch_size
        self._side = int(config.mm_tokens_per_image**0.5)
        expected = {
            "size": {"height": self._side_px, "width": self._side_px},
            "image_seq_length": config.mm_tokens_per_image,
            "image_token_id": config.image_token_id,
        }
        found = {
            "size": {"height": images.size["height"], "width": images.size["width"]},
            "image_seq_length": processor.image_seq_length,
            "image_token_id": self.tokenizer.image_token_id,
        }
        for name, value in found.items():
            if value != expected[name]:
                raise SetupError(
                    f"{name}={value} in the processor's files of a gemma3 model, whose config.json has "
                    f"{expected[name]}; copy the model again"
                )
        for name in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
            if value := getattr(text, name, None):
                raise SetupError(
                    f"text_config.{name}={value} is not served for gemma3: transformers and vLLM disagree on it; use a "
                    "model without it, as the published ones are"
                )
        if images.do_pan_and_scan:
            raise SetupError(
                "do_pan_and_scan=true in the processor's files of a gemma3 model is not served; set it to false, as "
                "the published models have it"
            )

    @property
    def visual_ids(self) -> Mapping[MediaKind, int]:
        return {"image": self.tokenizer.image_token_id}

    @property
    def placeholders(self) -> Mapping[MediaKind, str]:
        return {"image": self.processor.boi_token}

    @property
    def banned_ids(self) -> tuple[int, ...]:
        names = self.tokenizer
        return tuple(sorted({names.boi_token_id, names.eoi_token_id, names.image_token_id}))

    def expanded(self, media: Media) -> str:
        """The newlines around it merge with those of the text beside it, so only whole prompts can be tokenized."""
        text: str = self.processor.full_image_sequence
        return text

    def layout(self, media: Media) -> Layout:
        return Layout("image", (View(self._side, self._side),))

    @property
    def pixels_per_token(self) -> int:
        return self._side_px**2 // self._side**2

    @property
    def picture_bounds(self) -> tuple[int, int]:
        return self._side_px**2, self._side_px**2

    def pixel_budgets(self, data: FilesConfig) -> dict[MediaKind, PixelBudget]:
        """A picture is one tile, whatever its shape."""
        return {"image": tile_budget(data, self._side_px, (1, 1))}

    def features(self, media: Sequence[Media], pixels: Sequence[Any]) -> list[Features]:
        found = [self.processor.image_processor(images=[picture], return_tensors="pt") for picture in pixels]
        return [{"pixel_values": one["pixel_values"], "pictures": torch.ones(1, 1, dtype=torch.int64)} for one in found]

    def positions(self, visual: Tensor, layouts: Sequence[Layout]) -> Tensor:
        return torch.arange(len(visual))[None]

    def encode(self, model: Any, features: Features, sequence: SequenceGroup | None = None) -> Encoded:
        """Encode each picture: [tokens, E]. Without any, a black one is encoded."""
        if not features:
            device = next(model.vision_tower.parameters()).device
            black = torch.zeros(1, 3, self._side_px, self._side_px, device=device)
            return {"image": (self._seen(model, black)[0, :0],)}
        pixels, counts = features["pixel_values"], features["pictures"]
        seen = seen_tiles(lambda own: self._seen(model, own), pixels, counts, sequence)
        return {"image": tuple(picture[0] for picture in seen)}

    def _seen(self, model: Any, pixels: Tensor) -> Tensor:
        """[pictures, tokens, E]"""
        return model.get_image_features(pixels.to(model.dtype), return_dict=True).pooler_output

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
        """All patches of a picture attend to each other."""
        vision = self.config.vision_config
        return 4 * vision.hidden_size * vision.num_hidden_layers * self._patches**4

    def engine_media(self, media: Media, pixels: Any) -> Any:
        return pixels

    def expansion_problem(
        self, token_ids: Sequence[int], engine_ids: Sequence[int], media: Sequence[Media]
    ) -> str | None:
        """The newlines around a picture merge with those of the text. vLLM merges two tokens once, up to four
        newlines, and then looks for two behind a picture, which it does not see in three.
        """
        if not media:
            return None
        found = self.expanded_apart(engine_ids, media)
        one, two, three, four = self.tokenizer.convert_tokens_to_ids(["\n" * count for count in range(1, 5)])
        for first, second, merged in ((one, two, three), (two, one, three), (two, two, four)):
            found = _merged(found, first, second, merged)
        lost = (self.tokenizer.eoi_token_id, three) in itertools.pairwise(found)
        if found == [*token_ids] and not lost:
            return None
        return (
            "vLLM reads the newlines beside a picture otherwise, since they merge with those that the model adds; "
            "write words behind <image> on its line, and no empty line before it"
        )

    def engine_problem(self, device: Device, dtype: Dtype) -> str | None:
        """Refuse vLLM on CPU, whose attention is causal within pictures."""
        if device == "cuda":
            return None
        return (
            "rollout.engine=vllm on a CPU: its attention is causal within pictures, where gemma3 attends in both "
            "directions, so log-probs would be those of another model; choose rollout=hf, or engines on GPUs"
        )


def _merged(token_ids: Sequence[int], first: int, second: int, merged: int) -> list[int]:
    """The tokens with each `first` before a `second`, from the left, as one `merged`."""
    found: list[int] = []
    for token in token_ids:
        if found and (found[-1], token) == (first, second):
            found[-1] = merged
        else:
            found.append(token)
    return found
