"""A small random Qwen3-VL."""

from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from ral_system.models.loading import load_family


def build_qwen3_vl(tiny_model: Path, folder: Path) -> None:
    """Write one with the processor of the tiny Qwen2.5-VL."""
    other = load_family(tiny_model)
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(other.tokenizer),
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "initializer_range": 0.2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 14,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
        tie_word_embeddings=False,
        **{name: getattr(other.config, name) for name in tokens},
    )
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    other.processor.save_pretrained(folder)
