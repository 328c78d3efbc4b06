"""What the groups of the configuration share: their base class, types of numbers, and lists of choices.

A list of choices that the library needs too is written here or in its group's file, and imported. Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OneOrMore = BeforeValidator(lambda given: given if isinstance(given, list | tuple) else (given,))
"""Accept a single value for a tuple field."""

ResponseFormat = Literal["think_answer", "answer_only"]
SupervisedStage = Literal["perceive", "sft"]
Stage = Literal[SupervisedStage, "rl"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""In the order in which a run goes through them."""
Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]

Divergence = Literal["jsd", "forward_kl", "reverse_kl", "tv", "hellinger"]
TokenDivergence = Literal["reverse_kl", "forward_kl", "jsd"]
Reduction = Literal["token_mean", "sequence_mean", "sequence_sum"]

Heads = Literal["mean", "each"]
Rows = Literal["generated", "predicting", "answer", "instruction"]
Keys = Literal["all", "visual", "prompt", "no_sinks"]
Layers = Literal["last", "all"]
Backend = Literal["auto", "dense", "chunked", "triton"]


class Group(BaseModel):
    """Base of every group: immutable, no extra keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
