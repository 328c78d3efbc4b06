"""What must hold of every prompt and completion, in any engine. A GateError names the prompt and the difference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence

from ral_system.errors import DataError, GateError, MediaTokenError, PromptIdError
from ral_system.types import Completion, FinishReason, Prompt


def collapse_placeholders(prompt: Prompt, image_token_id: int) -> list[int]:
    """The prompt with one image token per image, as an engine that expands placeholders itself wants it."""
    collapsed: list[int] = []
    for token in prompt.token_ids:
        if token != image_token_id or not collapsed or collapsed[-1] != image_token_id:
            collapsed.append(token)
    runs = collapsed.count(image_token_id)
    if runs != len(prompt.media):
        raise PromptIdError(f"prompt {prompt.id}: {runs} runs of image tokens for {len(prompt.media)} images")
    return collapsed


def check_prompt_length(prompt: Prompt, max_model_len: int) -> None:
    """Refuse a prompt that leaves no room for a single token (DataError)."""
    if len(prompt.token_ids) >= max_model_len:
        raise DataError(
            f"prompt {prompt.id}: {len(prompt.token_ids)} tokens leave no room for a response within "
            f"rollout.max_model_len={max_model_len}; raise it or use smaller images"
        )


def check_image_tokens(prompt: Prompt, image_token_id: int, visual_tokens: Sequence[int]) -> None:
    """Every run of image tokens must be as long as its image has visual tokens."""
    found = [len(list(run)) for token, run in itertools.groupby(prompt.token_ids) if token == image_token_id]
    if found != list(visual_tokens):
        raise PromptIdError(f"prompt {prompt.id}: runs of {found} image tokens for images of {list(visual_tokens)}")


def check_prompt_ids(prompt: Prompt, engine_ids: Sequence[int]) -> None:
    """The engine must have seen the very tokens that the learner will see."""
    if tuple(engine_ids) == prompt.token_ids:
        return
    pairs = enumerate(zip(prompt.token_ids, engine_ids, strict=False))
    ours, theirs = len(prompt.token_ids), len(engine_ids)
    at = next((i for i, (a, b) in pairs if a != b), min(ours, theirs))
    detail = f"at token {at} ours is {_token(prompt.token_ids, at)}, the engine's {_token(engine_ids, at)}"
    raise PromptIdError(
        f"prompt {prompt.id}: the engine expanded it to {theirs} tokens, the data pipeline to {ours}; {detail}"
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

    `stop_text` ends a response, too, as soon as its text holds it.
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
