"""What ends a response, in any engine."""

from __future__ import annotations

from collections.abc import Sequence

ANSWER_END = "</answer>"
"""The text that ends a response with `rollout.stop_at_answer`."""


def stop_token_ids(end_of_turn: int, generation_config_ids: int | Sequence[int] | None) -> frozenset[int]:
    """The tokenizer's end of turn and those that the model's generation_config.json names."""
    if generation_config_ids is None:
        return frozenset({end_of_turn})
    if isinstance(generation_config_ids, int):
        return frozenset({end_of_turn, generation_config_ids})
    return frozenset({end_of_turn, *generation_config_ids})
