"""A small random InternVL3 in Hugging Face format."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from ral_system.tasks.tiny_model import build_tokenizer
from tests.perturbed import perturb

TILE_PX = 28
MARKERS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT> {% elif part['type'] == 'video' %}<video> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def build_internvl(folder: Path, words: Iterable[str], *, text: str = "qwen2", side: int = 2, layers: int = 3) -> None:
    """Write one whose tiles of 28 px are `side` × `side` tokens, of 2 × 2 patches each; `text` is qwen2 or qwen3."""
    base = build_tokenizer([*words, *(f"Frame{i}" for i in range(1, 17)), ":"])
    base.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=MARKERS)
    config = InternVLConfig(
        text_config={
            "model_type": text,
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
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
            "image_size": (TILE_PX, TILE_PX),
            "patch_size": (TILE_PX // side // 2,) * 2,
            "attention_bias": True,
            "initializer_range": 0.1,
        },
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=side**2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config)
    perturb(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    size = {"height": TILE_PX, "width": TILE_PX}
    pixels = {"size": size, "image_mean": [0.9] * 3, "image_std": [0.3] * 3}
    InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(min_patches=1, max_patches=12, **pixels),
        video_processor=InternVLVideoProcessor(**pixels),
        tokenizer=tokenizer,
        image_seq_length=side**2,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
