"""What must hold of every prompt and completion, in any engine. A GateError names the prompt and the difference."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ral_system.errors import DataError, GateError, MediaTokenError, PromptIdError
from ral_system.families.family import Family
from ral_system.types import Completion, FinishReason, Prompt


def check_media_tokens(prompt: Prompt, family: Family) -> None:
    """Every run of media tokens must be as long as its picture or video has visual tokens, in their order."""
    if problem := family.problem(prompt.token_ids, prompt.media):
        raise PromptIdError(f"prompt {prompt.id} {problem}")


def check_prompt_length(prompt: Prompt, max_model_len: int) -> None:
    """Refuse a prompt that leaves no room for a single token (DataError)."""
    if len(prompt.token_ids) >= max_model_len:
        raise DataError(
            f"prompt {prompt.id}: {len(prompt.token_ids)} tokens leave no room for a response within "
            f"rollout.max_model_len={max_model_len}; raise it or use smaller images"
        )


def check_prompt_ids(prompt: Prompt, engine_ids: Sequence[int]) -> None:
    """The engine must have seen the very tokens that the learner will see."""
    if tuple(engine_ids) == prompt.token_ids:
        return
    pairs = enumerate(zip(prompt.token_ids, engine_ids, strict=False))
    ours, theirs = len(prompt.token_ids), len(engine_ids)
    at = next((i for i, (a, b) in pairs if a != b), min(ours, theirs))
    detail = f"at token {at} ours is {_token(prompt.token_ids, at)}, the engine's {_token(engine_ids, at)}"
    raise PromptIdError(
        f"prompt {prompt.id}: the engine expanded it to {theirs} tokens, the data pipeline to {ours}; {detail}; change "
        "the text there or leave the row out, or choose rollout=hf, which takes the tokens as they are"
    )


def check_completion(
    prompt: Prompt,
    completion: Completion,
    *,
    banned_token_ids: Collection[int],
    stop_token_ids: Collection[int],
    stop_text: str | None = None,
) -> None:
    """A completion must be trainable: non-empty, one finite log-prob per token, no media token, properly ended.

    `stop_text` also ends a response, as soon as its text holds it.
    """
    tokens, log_probs = completion.token_ids, completion.log_probs
    label = f"completion {completion.id}"
    if not tokens or len(tokens) != len(log_probs):
        raise GateError(f"{label}: {len(tokens)} tokens with {len(log_probs)} log-probs")
    for at, (token, log_prob) in enumerate(zip(tokens, log_probs, strict=True)):
        if token in banned_token_ids:
            raise MediaTokenError(f"{label}: token {at} is {token}, which is banned (it stands for media in a prompt)")
        if not math.isfinite(log_prob) or log_prob > 1e-5:
            raise GateError(f"{label}: token {at} has log-prob {log_prob}")
    stopped = tokens[-1] in stop_token_ids or (stop_text is not None and stop_text in completion.text)
    if stopped != (completion.finish_reason is FinishReason.STOP):
        raise GateError(f"{label}: finish reason {completion.finish_reason} but its last token is {tokens[-1]}")
    if completion.prompt_id != prompt.id:
        raise GateError(f"{label}: belongs to prompt {prompt.id}")


def _token(ids: Sequence[int], at: int) -> str:
    return str(ids[at]) if at < len(ids) else "missing"
