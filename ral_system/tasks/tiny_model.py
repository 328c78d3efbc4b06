"""A tiny vision-language model of the Qwen2.5-VL architecture, built from nothing: weights, tokenizer and processor.

Saved in Hugging Face format, so transformers and vLLM load it as they load the 7B model. Its tokenizer knows the
words of the data that it is built for and the Qwen chat markers, or is a given one; a grid cell of 28 px is one visual
token.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from ral_system.config.choices import TAGS

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ROLES = ("system", "user", "assistant")

# The light background of the mosaics maps to 0 and every glyph to one sign, so shapes show regardless of colour.
PIXEL_MEAN = [0.94, 0.94, 0.94]
PIXEL_STD = [0.25, 0.25, 0.25]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: one token per word, tag or marker; unknown words become `<unk>`."""
    entries = list(dict.fromkeys([*SPECIAL_TOKENS, "<unk>", *TAGS, *ROLES, *words]))
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"</?\w+>|\w+|[^\w\s]"), behavior="isolated"),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_config(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int = 128, layers: int = 4, vision_layers: int = 2
) -> Qwen2_5_VLConfig:
    """A Qwen2.5-VL config with head dimension 32 (the smallest that vLLM serves) and grouped key heads."""
    heads = hidden // 32
    token_id = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": 1 + max(tokenizer.get_vocab().values()),  # ids may have gaps
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": hidden**-0.5,
    }
    vision = {
        "depth": vision_layers,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_heads": heads,
        "out_hidden_size": hidden,
        "fullatt_block_indexes": list(range(vision_layers)),
        "initializer_range": hidden**-0.5,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor, for pictures from 2 × 2 to 1,280 visual tokens."""
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, image_mean=PIXEL_MEAN, image_std=PIXEL_STD),
        video_processor=Qwen2VLVideoProcessor(size=size, image_mean=PIXEL_MEAN, image_std=PIXEL_STD),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )


def build_tiny_model(
    folder: Path, words: Iterable[str], *, hidden: int, layers: int, vision_layers: int, seed: int
) -> None:
    """Write a model that knows `words` to `folder`."""
    sizes = {"hidden": hidden, "layers": layers, "vision_layers": vision_layers}
    write_tiny_model(folder, build_tokenizer(words), **sizes, seed=seed)


def write_tiny_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, vision_layers: int, seed: int
) -> None:
    """Write randomly initialised weights, tokenizer, processor and the tokenizer's chat template to `folder`."""
    config = build_config(tokenizer, hidden=hidden, layers=layers, vision_layers=vision_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).float()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    build_processor(tokenizer, tokenizer.chat_template).save_pretrained(folder)
