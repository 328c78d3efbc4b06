"""Open answers by MMMU's rule (`parse_open_response`, `eval_open`), with the phrases that Video-MMMU adds.

Of each line of an answer, the shortest text that follows a phrase which announces a result; of the last line, also what
follows `=`. Right is an answer one of whose texts holds the reference, or one of whose numbers is the reference's, to
two decimals.
"""

from __future__ import annotations

import re

PHRASES = (
    *("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are ", "in total ", "total "),
    *("identify ", "recognize ", "calculated as ", "counted as ", "measured as ", "observed as ", "concluded as "),
    *("found to be ", "equals ", "determined to be ", "number of ", "value is ", "adds up to ", "have ", "has "),
)

_NUMBERS = (  # none begins within a row of digits: that would change nothing, and endless digits would take long
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def right(response: str, reference: str) -> bool:
    """Return whether an open answer is right."""
    texts = _results(response.strip().strip(".").lower())
    numbers = [number for text in texts for pattern in _NUMBERS for number in pattern.findall(text)]
    found = [one for text in (*texts, *numbers) for one in _forms(text)]
    return any(
        one == wanted if isinstance(one, float) else isinstance(wanted, str) and wanted in one
        for one in found
        for wanted in _forms(reference)
    )


def _results(answer: str) -> list[str]:
    lines = answer.split("\n")
    results = []
    for number, line in enumerate(lines, 1):
        phrases = (*PHRASES, "=") if number == len(lines) else PHRASES
        tails = [line.rpartition(phrase)[2].strip() for phrase in phrases if phrase in line]
        shortest = min((tail for tail in tails if tail), key=len, default="")
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            results.append(shortest)
    return results or [answer]


def _forms(text: str) -> list[str | float]:
    """A number as a number, a word in lower case, a letter with a space before or after it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]
