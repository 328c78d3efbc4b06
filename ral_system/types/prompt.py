"""Questions as a model sees them, and how to generate answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ral_system.types.evidence import Region, check_evidence
from ral_system.types.media import Media

Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the model sees it, with what is needed to judge the answer.

    Example: `Prompt(id="train/17", kind="attribute", question="what colour is the star ?", answer="red",
    media=(Media(…),), token_ids=(1, 5, 9, 9, 9, …))`
    """

    id: str
    kind: str
    """Question kind, for per-kind tables."""
    question: str
    answer: str
    media: tuple[Media, ...]
    token_ids: tuple[int, ...]
    """[P] chat-rendered, with every media placeholder expanded to one token per visual token."""
    engine_token_ids: tuple[int, ...] = ()
    """Token ids with one placeholder per medium, for rollout engines that expand them."""
    system_tokens: int = 0
    """Tokens of the system turn, which begins the prompt; a turn that the chat template adds by itself counts."""
    question_positions: tuple[int, ...] = ()
    """Tokens of the question's text, in order; media inside it, and the markers around them, are left out."""
    opening: str = ""
    """Beginning of the response that the chat template writes itself: `<think>` and a line end, or nothing."""
    evidence: tuple[Region, ...] = ()
    """Where the answer is to be seen: all of it, as far as it is known; empty: not known."""

    def __post_init__(self) -> None:
        """Raise ValueError for evidence that does not fit the media."""
        try:
            check_evidence(self.evidence, self.media)
        except ValueError as error:
            raise ValueError(f"prompt {self.id}: {error}") from None

    @property
    def visual_tokens(self) -> int:
        """Tokens that stand for media, with what a family puts between them; 0 if the engine's tokens are not known."""
        return len(self.token_ids) - len(self.engine_token_ids) + len(self.media) if self.engine_token_ids else 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to generate. `temperature=0` is greedy. `seed` makes a completion a function of prompt, index and weights.

    Example: `Sampling(completions=8, temperature=1.0, max_new_tokens=64, seed=7)`
    """

    completions: int
    temperature: float
    max_new_tokens: int
    seed: int
    top_tokens: int = 0
    """Number of most likely tokens to report per position, including the sampled one; 0: only the sampled one's
    log-prob."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some completions of one prompt, which one engine makes: a whole group, or a part of it.

    Example: `Piece(Prompt(…), first=4, completions=4)` is the second half of a group of eight.
    """

    prompt: Prompt
    first: int
    """Index within the group of the first completion."""
    completions: int
