"""Folders of models without weights, and plans for them."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

from ral_system.config.commands import PlanCommandConfig
from ral_system.planning.plan import Plan, make_plan
from tests.composed import compose_config

VIDEO = ("experiment=video_r1_qwen2_5_vl_7b_8gpu", "data.sources.main.path=rows.json")
LORA = "learner.lora={rank: 4, alpha: 8, targets: [q_proj, k_proj, v_proj, o_proj], vision: false}"
SMALL_STEP = ("stages=[rl]", "plan.medium=none", "plan.text_tokens=100", "plan.response_tokens=16")
FEW = ("algorithm.prompts_per_step=4", "algorithm.completions_per_prompt=4")
"""Samples enough for four updates on one rank."""
TEXT_OF_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
TEXT_OF_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
}
VISION = {
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
}
"""The encoder of both."""


def write_7b(folder: Path, tiny: Path, layers: int = 28, vocabulary: int = 152064, depth: int = 32) -> Path:
    """Qwen2.5-VL-7B with so many layers, and `depth` of them in its encoder, a multiple of eight or less than eight.

    It has the sizes of the model's configuration, and the tokenizer of a tiny one.
    """
    return _written(folder, tiny, TEXT_OF_7B, layers, vocabulary, depth, tied=False)


def write_3b(folder: Path, tiny: Path) -> Path:
    """Qwen2.5-VL-3B, likewise."""
    return _written(folder, tiny, TEXT_OF_3B, 36, 151936, 32, tied=True)


def _written(
    folder: Path, tiny: Path, text: dict[str, int], layers: int, vocabulary: int, depth: int, *, tied: bool
) -> Path:
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text | {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}
    config["text_config"]["vocab_size"] = vocabulary
    config["text_config"]["rope_parameters"]["mrope_section"] = [16, 24, 24]
    config["text_config"].pop("head_dim", None)
    whole = [*range(7, depth, 8)] or [depth - 1]
    encoder = VISION | {"out_hidden_size": text["hidden_size"]}
    config["vision_config"] |= encoder | {"depth": depth, "fullatt_block_indexes": whole}
    for part in (config, config["text_config"]):
        part["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(config))
    processor = json.loads((folder / "processor_config.json").read_text())
    for name in ("image_processor", "video_processor"):
        processor[name]["size"] = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


@functools.cache
def planned(folder: Path, *overrides: str) -> tuple[Plan, PlanCommandConfig]:
    """A plan and the configuration that it is of, made once for all tests."""
    config = compose_config(*overrides, kind=PlanCommandConfig)
    return make_plan(config, config.plan, folder, []), config
