"""The model that both sides start from: a trained folder, or random weights whose responses all have one length."""

from __future__ import annotations

import json
from pathlib import Path

NEVER_SAMPLED = "<|vision_end|>"
"""Both sides ban it from sampling: as the end of the turn, it lets no response end before the limit."""


def random_model(folder: Path, hidden: int) -> Path:
    """Build a tiny Qwen2.5-VL with random weights, unless `folder` has it, which never ends a response itself."""
    if (folder / "config.json").is_file():
        return folder
    from transformers import AutoProcessor

    from ral_system.tasks import visual_search
    from ral_system.tasks.tiny_model import build_tiny_model

    partial = folder.with_name(f"{folder.name}.partial")
    build_tiny_model(partial, visual_search.words(), hidden=hidden, layers=4, vision_layers=2, seed=0)
    processor = AutoProcessor.from_pretrained(partial)
    processor.chat_template = processor.chat_template.replace(processor.tokenizer.eos_token, NEVER_SAMPLED)
    processor.tokenizer.eos_token = NEVER_SAMPLED
    processor.save_pretrained(partial)
    end = processor.tokenizer.eos_token_id
    for name, path in (("generation_config.json", ()), ("config.json", ("text_config",))):
        content = json.loads((partial / name).read_text(encoding="utf-8"))
        at = content
        for key in path:
            at = at[key]
        at["eos_token_id"] = end
        (partial / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    partial.rename(folder)
    return folder
