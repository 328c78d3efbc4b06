"""What ends a response, in any engine."""

from __future__ import annotations

from collections.abc import Sequence

from ral_system.families.family import Family

ANSWER_END = "</answer>"
"""The text that ends a response with `rollout.stop_at_answer`."""


def stop_token_ids(family: Family, generation_config_ids: int | Sequence[int] | None) -> frozenset[int]:
    """Return the tokens that end a response.

    They are the end of a turn in the chat template, the tokenizer's end of sequence, and those that the model's
    generation_config.json names.
    """
    named = (generation_config_ids,) if isinstance(generation_config_ids, int) else generation_config_ids or ()
    own = () if family.tokenizer.eos_token_id is None else (family.tokenizer.eos_token_id,)
    return frozenset({family.end_of_turn, *own, *named})
