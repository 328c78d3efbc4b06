"""A small random Qwen3-VL."""

from pathlib import Path

import torch
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from ral_system.tasks import looking, visual_search
from ral_system.tasks.tiny_model import CHAT_TEMPLATE, build_tokenizer

MARKERS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def build_qwen3_vl(folder: Path) -> None:
    """Write one that knows the words of the generated tasks and times below 64 seconds; 28 px a token.

    Its heads are as wide as vLLM serves them at least.
    """
    tokenizer = build_tokenizer(
        [*visual_search.words(), *looking.words(), "<", ".", ">", "seconds", *map(str, range(64))]
    )
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "initializer_range": 0.2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 14,
            "hidden_size": 64,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
            "initializer_range": 0.2,
        },
        tie_word_embeddings=False,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in MARKERS.items()},
    )
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    own = {"patch_size": 14, "size": size, "image_mean": [0.9] * 3, "image_std": [0.3] * 3}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**own),
        video_processor=Qwen3VLVideoProcessor(**own),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
