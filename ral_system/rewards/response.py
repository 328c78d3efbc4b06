"""What is judged."""

from __future__ import annotations

from dataclasses import dataclass

from ral_system.config.choices import ResponseFormat


@dataclass(frozen=True, slots=True)
class Response:
    """The text of one response, with what is known of its question.

    Example: `Response("<think>a1 red star</think><answer>red</answer>", "red", "attribute", "think_answer")`
    """

    text: str
    reference: str
    """Reference answer."""
    kind: str
    """Kind of the question."""
    format: ResponseFormat
    """Template that the response should follow."""
