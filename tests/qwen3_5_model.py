"""A small random Qwen3.5, whose layers take turns: linear attention and softmax attention."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5Tokenizer,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from ral_system.tasks.tiny_model import CHAT_TEMPLATE
from tests.perturbed import perturb
from tests.qwen3_model import MARKERS
from tests.qwen_tokenizer import SPECIAL, first_merges

LINEAR, SOFTMAX = "linear_attention", "full_attention"


def build_tokenizer() -> Qwen3_5Tokenizer:
    """Qwen's first 1,500 tokens: transformers reads any tokenizer of this family as byte-level BPE."""
    vocabulary, merges = first_merges(1500)
    special = {token: len(vocabulary) + i for i, token in enumerate(SPECIAL)}
    return Qwen3_5Tokenizer(
        vocab=vocabulary | special,
        merges=merges,
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL),
        model_max_length=4096,
        chat_template=CHAT_TEMPLATE,
    )


def build_qwen3_5(folder: Path, layers: Sequence[str] = (LINEAR, SOFTMAX, LINEAR, SOFTMAX)) -> None:
    """Write one; 28 px a token. Its heads are as wide as vLLM serves them at least."""
    tokenizer = build_tokenizer()
    config = Qwen3_5Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": len(layers),
            "layer_types": list(layers),
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.06,  # more, and padding alone moves transformers' log-probs by 1e-4
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [3, 3, 2],
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
            "num_position_embeddings": 64,
            "initializer_range": 0.2,
        },
        tie_word_embeddings=False,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in MARKERS.items()},
    )
    torch.manual_seed(0)
    model = Qwen3_5ForConditionalGeneration(config)
    perturb(model)
    for layer in model.get_decoder().layers:
        if hasattr(layer, "linear_attn"):  # as random as they come, states would be forgotten within a few tokens
            torch.nn.init.uniform_(layer.linear_attn.A_log, -4, 0)
            torch.nn.init.uniform_(layer.linear_attn.dt_bias, -2, 0)
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
