"""A small random SmolVLM2, or Idefics3."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

from ral_system.tasks.tiny_model import build_tokenizer
from tests.perturbed import perturb

MARKERS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    **{f"tile_{row}_{column}": f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)},
}
_MODELS = {
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
}


def build_smolvlm(
    folder: Path,
    words: Iterable[str],
    *,
    model_type: Literal["smolvlm", "idefics3"] = "smolvlm",
    side: int = 4,
    scale: int = 2,
    patch_px: int = 7,
    edge_tiles: int = 3,
) -> None:
    """Write one whose tiles are `side` × `side` patches, `scale` × `scale` of them a token; a picture's longer side is
    `edge_tiles` tiles. The chat template is the published models'.
    """
    tile_px = side * patch_px
    base = build_tokenizer([*words, "User", "Assistant", "System", ":"])
    base.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=MARKERS)
    config_class, model_class = _MODELS[model_type]
    config = config_class(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "initializer_range": 0.1,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": False,
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": tile_px,
            "patch_size": patch_px,
            "initializer_range": 0.1,
        },
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=scale,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = model_class(config)
    perturb(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    pixels = {"image_mean": [0.9] * 3, "image_std": [0.3] * 3}
    tiles = {"size": {"longest_edge": edge_tiles * tile_px}, "max_image_size": {"longest_edge": tile_px}}
    own = {"image_seq_len": (side // scale) ** 2, "tokenizer": tokenizer, "chat_template": DEFAULT_CHAT_TEMPLATE}
    if model_type == "idefics3":
        Idefics3Processor(image_processor=Idefics3ImageProcessor(**tiles, **pixels), **own).save_pretrained(folder)
        return
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**tiles, **pixels),
        video_processor=SmolVLMVideoProcessor(**tiles, **pixels),
        **own,
    ).save_pretrained(folder)
