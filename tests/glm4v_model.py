"""A small random GLM-4.1V."""

from pathlib import Path

import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
)

from ral_system.tasks import looking, visual_search
from ral_system.tasks.tiny_model import build_tokenizer

MARKERS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
TURNS = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif part['type'] == 'video' %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def build_glm4v(folder: Path) -> None:
    """Write one that knows the words of the generated tasks and whole seconds below 64; 28 px a token.

    Its heads are as wide as vLLM serves them at least.
    """
    tokenizer = build_tokenizer([*visual_search.words(), *looking.words(), *map(str, range(64))])
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKERS.values(), *TURNS]})
    tokenizer.chat_template = CHAT_TEMPLATE
    config = Glm4vConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.1,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
                "partial_rotary_factor": 0.5,
            },
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "image_size": 112,
            "hidden_size": 64,
            "intermediate_size": 64,
            "out_hidden_size": 128,
            "initializer_range": 0.2,
        },
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in MARKERS.items()},
    )
    torch.manual_seed(0)
    model = Glm4vForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    size = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 28 * 28 * 1280}  # of two frames
    own = {"size": size, "image_mean": [0.9] * 3, "image_std": [0.3] * 3}
    Glm4vProcessor(
        image_processor=Glm4vImageProcessor(**own),
        video_processor=Glm4vVideoProcessor(**own),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
