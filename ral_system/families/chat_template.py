"""What a model's chat template writes around the words of a conversation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

STAND_IN = "\ue000"
"""Replaces a piece of text while the template is filled in, so no text can look like a part of the template."""


class ChatTemplate:
    """The chat template of a Hugging Face processor.

    `thinks` decides whether a response begins with a thought, where the template leaves the choice (`enable_thinking`).
    """

    def __init__(self, processor: Any, *, thinks: bool = True) -> None:
        self._processor = processor
        # transformers takes what a template does not know for an option of the processor
        choice = "enable_thinking" in str(processor.chat_template)
        self.options = {"enable_thinking": thinks} if choice else {}
        """What the template is rendered with, as keyword arguments of `apply_chat_template`."""

    def render(self, messages: Sequence[dict[str, Any]], *, answers: bool) -> str:
        """Return the conversation as text; `answers` opens the assistant's next turn."""
        text: str = self._processor.apply_chat_template(
            list(messages),
            add_generation_prompt=answers,
            tokenize=False,
            processor_kwargs={"padding": False},  # without any, SmolVLM's processor warns of its own at every call
            **self.options,
        )
        return text

    def before_the_question(self, system: str) -> str:
        """Return the system turn: what stands before the first user turn but not before a later one.

        It is the template's own where `system`, the words of the turn, is empty and the template adds one. A template
        without system turns puts the words into the user's: there it is all up to their end.
        """
        turns = [turn("system")] if system else []
        rendered = self.render([*turns, turn("user")], answers=False)
        before = rendered[: rendered.rindex(STAND_IN)]
        own = before[: max(0, before.rfind(self._header(turns)))]
        if system and STAND_IN not in own:
            own = before[: before.index(STAND_IN) + 1]
        return own.replace(STAND_IN, system)

    def _header(self, system: Sequence[dict[str, Any]]) -> str:
        """Return the beginning of a user turn."""
        ends_assistant = self._pieces([*system, turn("user"), turn("assistant")])[-1]
        return self._after_an_answer(system).removeprefix(ends_assistant).strip()

    def _after_an_answer(self, system: Sequence[dict[str, Any]]) -> str:
        return self._pieces([*system, turn("user"), turn("assistant"), turn("user")])[-2]

    @functools.cached_property
    def after_an_answer(self) -> str:
        """What stands between an assistant's words and the next words of the user."""
        return self._after_an_answer([])

    def _pieces(self, messages: Sequence[dict[str, Any]]) -> list[str]:
        return self.render(messages, answers=False).split(STAND_IN)


def turn(role: str) -> dict[str, Any]:
    """Return a message whose text is `STAND_IN`."""
    return {"role": role, "content": [{"type": "text", "text": STAND_IN}]}
