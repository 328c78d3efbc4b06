"""Small models of every family, inputs for them, and what a probe captures."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from ral_system.attention import attention_policy
from ral_system.attention.packing import Packing
from ral_system.attention.probe import AttentionProbe, Capture, PackedRows

START, END, IMAGE, VIDEO = 1, 2, 3, 4
TEXT = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def build_qwen2_vl() -> PreTrainedModel:
    vision = VISION | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=TEXT | {"rope_parameters": ROPE}, vision_config=vision, **TOKENS)
    )


def build_qwen2_5_vl() -> PreTrainedModel:
    vision = VISION | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=TEXT | {"rope_parameters": ROPE}, vision_config=vision, **TOKENS)
    )


def build_qwen3_vl() -> PreTrainedModel:
    vision = VISION | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    }
    text = TEXT | {"head_dim": 16, "rope_parameters": ROPE | {"mrope_interleaved": True}}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **TOKENS))


def build_glm4v() -> PreTrainedModel:
    """Rotary embedding turns half of each head."""
    vision = VISION | {"image_size": 112, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
    text = TEXT | {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}}
    tokens = TOKENS | {"image_start_token_id": START, "image_end_token_id": END, "pad_token_id": 0}
    return Glm4vForConditionalGeneration(Glm4vConfig(text_config=text, vision_config=vision, **tokens))


def build_qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**TEXT))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen2_vl": build_qwen2_vl,
    "qwen2_5_vl": build_qwen2_5_vl,
    "qwen3_vl": build_qwen3_vl,
    "glm4v": build_glm4v,
    "qwen2": build_qwen2,
}
CONTENTS: dict[str, list[tuple[int, tuple[int, int, int]]]] = {  # media token, grid of patches (time, height, width)
    "text": [],
    "image": [(IMAGE, (1, 4, 6))],
    "images": [(IMAGE, (1, 4, 4)), (IMAGE, (1, 2, 6)), (IMAGE, (1, 6, 2))],
    "video": [(VIDEO, (3, 4, 4))],
    "image and video": [(IMAGE, (1, 2, 4)), (VIDEO, (2, 4, 2))],
}


def contents(family: str, *names: str) -> list[str]:
    """Drop of `names` what a family does not take: all but text for Qwen2, videos beside pictures for GLM."""
    if family == "qwen2":
        return ["text"] * 2
    return [name for name in names if family != "glm4v" or "video" not in name]


CASES = [(family, content) for family in FAMILIES for content in CONTENTS if family != "qwen2" or content == "text"]
CASES.remove(("glm4v", "image and video"))  # transformers' GLM takes one kind at a time

Inputs = dict[str, Any]


def attention_of(model: PreTrainedModel) -> list[nn.Module]:
    return [layer.self_attn for layer in model.get_decoder().layers]


def sequence(family: str, content: str, seed: int = 0) -> Inputs:
    """Some text, the media, some text; pixels at random."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(5, 40, (count,), generator=generator).tolist()

    ids, pixels, grids = words(3 + seed), {IMAGE: [], VIDEO: []}, {IMAGE: [], VIDEO: []}
    kinds = [0] * len(ids)
    for token, (time, height, width) in CONTENTS[content]:
        apart = family in ("qwen3_vl", "glm4v")
        frames, cells = (time, height * width // 4) if apart else (1, time * height * width // 4)
        for _ in range(frames):  # these families write a time beside each frame, and GLM the token of pictures
            ids += [*words(1), START, *[IMAGE if family == "glm4v" else token] * cells, END]
            kinds += [0, 0, *[1 if token == IMAGE else 2] * cells, 0]
        pixels[token].append(torch.randn(time * height * width, 3 * 2 * 14 * 14, generator=generator))
        grids[token].append([time, height, width])
    ids += words(9)
    found: Inputs = {"input_ids": torch.tensor([ids])}
    if family != "qwen2":
        found["mm_token_type_ids"] = torch.tensor([kinds + [0] * 9], dtype=torch.int32)
    for token, pixel_name, grid_name in (
        (IMAGE, "pixel_values", "image_grid_thw"),
        (VIDEO, "pixel_values_videos", "video_grid_thw"),
    ):
        if pixels[token]:
            found |= {pixel_name: torch.cat(pixels[token]), grid_name: torch.tensor(grids[token])}
    return found


def together(sequences: list[Inputs], pad: str) -> Inputs:
    """Several sequences as one batch, padded on one side."""
    longest = max(s["input_ids"].shape[1] for s in sequences)

    def padded(row: Tensor) -> Tensor:
        space = longest - row.shape[1]
        return torch.nn.functional.pad(row, (space, 0) if pad == "left" else (0, space))

    ones = [s | {"attention_mask": torch.ones_like(s["input_ids"])} for s in sequences]
    rows = {"input_ids", "mm_token_type_ids", "attention_mask"}
    return {
        name: torch.cat([padded(s[name]) if name in rows else s[name] for s in ones if name in s])
        for name in {name for s in ones for name in s}
    }


def packed(model: PreTrainedModel, sequences: list[Inputs]) -> tuple[Inputs, tuple[int, ...]]:
    """Pack sequences one behind the other, and return their lengths; positions start again in each.

    From one-dimensional positions transformers itself makes a mask that separates the sequences.
    """
    lengths = tuple(s["input_ids"].shape[1] for s in sequences)
    found = {
        name: torch.cat([s[name] for s in sequences if name in s], dim=1 if name.endswith("_ids") else 0)
        for name in {name for s in sequences for name in s}
    }
    positions = []
    for s, length in zip(sequences, lengths, strict=True):
        if "mm_token_type_ids" in s:
            media = {name: s[name] for name in ("image_grid_thw", "video_grid_thw") if name in s}
            positions.append(model.model.get_rope_index(s["input_ids"], s["mm_token_type_ids"], **media)[0])
        else:
            positions.append(torch.arange(length)[None])
    found["position_ids"] = torch.cat(positions, dim=-1)
    return found | ({"packing": Packing.apart(lengths)} if "mm_token_type_ids" in found else {}), lengths


def expected_policy(model: PreTrainedModel, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Compute p [B, T, T] from eager attention of the last layer, and the logits."""
    with torch.no_grad():
        output = model(**inputs, output_attentions=True, use_cache=False)
    alpha = output.attentions[-1].mean(1)
    others = alpha.tril(-1)
    return others / others.sum(-1, keepdim=True).clamp(min=1e-30), output.logits


def probed(model: PreTrainedModel, inputs: Inputs) -> tuple[Capture, Tensor]:
    with torch.no_grad(), AttentionProbe(attention_of(model)).capture(whole=True) as (capture,):
        logits = model(**inputs, use_cache=False).logits
    return capture, logits


def every_row(lengths: tuple[int, ...]) -> PackedRows:
    return PackedRows(lengths, tuple(torch.arange(length) for length in lengths))


def policy(query_HTD: Tensor, key_KTD: Tensor, scale: float) -> Tensor:
    rows = torch.arange(query_HTD.shape[1])
    return attention_policy(query_HTD.transpose(0, 1), key_KTD.transpose(0, 1), rows, scale=scale)


Load = Callable[[str, str], PreTrainedModel]
