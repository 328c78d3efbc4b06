"""Lists of choices that the configuration and the library share.

Imports nothing but the standard library: benchmarks of the attention term run where only torch and transformers are.
"""

from __future__ import annotations

from typing import Literal, get_args

ResponseFormat = Literal["think_answer", "answer_only"]
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Tags of the response formats."""
ThinkTags = Literal["special", "text"]
"""How tags become token ids: by special tokens of the tokenizer, or as ordinary text."""
SupervisedStage = Literal["perceive", "sft"]
Stage = Literal[SupervisedStage, "rl"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""Stages in the order in which a run goes through them."""
STAGE_TITLES: dict[str, str] = {"perceive": "perceive", "sft": "cold start", "rl": "RL"}
Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]
Autocast = Literal["none", "bfloat16", "auto"]

Deal = Literal["groups", "samples"]
"""How a rollout batch is divided among the updates of a step."""

TokenDivergence = Literal["reverse_kl", "forward_kl", "jsd"]
Reduction = Literal["token_mean", "sequence_mean", "sequence_sum"]

Heads = Literal["mean", "each"]
Rows = Literal["generated", "predicting", "answer", "instruction"]
Keys = Literal["all", "visual", "prompt", "no_sinks"]
Layers = Literal["last", "all"]
Space = Literal["weights", "logits"]
"""What an intervention changes: attention weights, or the logits before the softmax."""
Backend = Literal["auto", "dense", "chunked", "triton"]

LookingFamily = Literal["search", "detail", "count", "chain", "misleading", "compare", "needle"]
"""Families of questions of `data=looking`."""
