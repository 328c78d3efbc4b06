"""Numbers spelled out in English: `forty-two`, `one hundred and five`, `two million`."""

from __future__ import annotations

import re

_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_VALUES = {word: n for n, word in enumerate(_SMALL)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_START = "|".join(sorted(_VALUES, key=len, reverse=True))
_RUN = re.compile(rf"\b(?=[zotfsen])(?:{_START})(?:(?: and |[ -])(?:{_START}|{'|'.join(SCALES)}))*\b", re.IGNORECASE)
_ONE_IS_SAID = re.compile(r"(?:^|(?:\b(?:is|are|answer|exactly|about)|[:=]) ?)$", re.IGNORECASE)


def in_digits(text: str) -> str:
    """The text with its spelled numbers in digits. `one` is a number only at the start or where a value is said."""
    return _RUN.sub(_digits, text)


def _digits(run: re.Match[str]) -> str:
    words = run[0].lower().replace("-", " ").replace(" and ", " ").split()
    if words == ["one"] and not (
        _ONE_IS_SAID.search(run.string[max(0, run.start() - 12) : run.start()])
        and not run.string.startswith(" of", run.end())
    ):
        return run[0]
    value = _value(words)
    return run[0] if value is None else str(value)


def _value(words: list[str]) -> int | None:
    """The number; None for words in an order that makes none (`twenty twelve`)."""
    total, part, last = 0, 0, 10**15
    for word in words:
        if word in _VALUES:
            value = _VALUES[word]
            if part % (10 if value < 10 else 100) or part % 100 == 10 or (value == 0 and len(words) > 1):
                return None
            part += value
        elif word == "hundred":
            if not 0 < part < 10:
                return None
            part *= 100
        else:
            if not part or SCALES[word] >= last:
                return None
            total, part, last = total + part * SCALES[word], 0, SCALES[word]
    return total + part
