"""A small random Gemma 3 whose tokenizer, like Gemma's, has tokens for runs of newlines."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    PreTrainedTokenizerFast,
)

from ral_system.config.choices import TAGS
from tests.perturbed import perturb

SIDE_PX = 28
WINDOW = 12
MARKERS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *MARKERS.values())
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set before = messages[0]['content'][0]['text'] + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set before = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (before if loop.first else '') }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""What Gemma 3's own does."""


def build_gemma_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A token for each word, space and run of up to five newlines: text is what its tokens say, put together."""
    newlines = ["\n" * count for count in range(1, 6)]
    entries = list(dict.fromkeys([*SPECIAL, *newlines, " ", *TAGS, "user", "model", *words]))
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|</?\w+>|\w+|[^\w\n]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
        extra_special_tokens=MARKERS,
        model_max_length=4096,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_gemma3(folder: Path, words: Iterable[str], *, side: int = 2, layers: int = 3, window: int = WINDOW) -> None:
    """Write one whose pictures of 28 px are `side` × `side` tokens, of 2 × 2 patches each; every third layer has no
    window. The head is the embedding, and the encoder's names are those of the published models.
    """
    tokenizer = build_gemma_tokenizer(words)
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": window,
            "layer_types": ["sliding_attention" if i % 3 else "full_attention" for i in range(layers)],
            "max_position_embeddings": 4096,
            "initializer_range": 0.1,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE_PX,
            "patch_size": SIDE_PX // side // 2,
            "vision_use_head": False,
        },
        mm_tokens_per_image=side**2,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config)
    perturb(model)
    model.generation_config.eos_token_id = [
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids("<end_of_turn>"),
    ]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    published = {name.replace("vision_tower.", "vision_tower.vision_model."): w for name, w in weights.items()}
    save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    size = {"height": SIDE_PX, "width": SIDE_PX}
    Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=size, image_mean=[0.9] * 3, image_std=[0.3] * 3),
        tokenizer=tokenizer,
        image_seq_length=side**2,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
