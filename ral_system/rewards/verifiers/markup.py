"""Markdown and LaTeX that models put around an answer, and how to take it off."""

from __future__ import annotations

import re

_MARKDOWN = str.maketrans("*_`$", "    ")
_HTML = re.compile(r"<(b|i|u|em|strong)>([^<]{0,400})</\1>", re.IGNORECASE)
_LATEX = re.compile(r"\\(?:boxed|text(?:bf)?|math(?:bf|rm))\{|\\[()]|[{}]")
_AROUND = " \n\t()[]\"“”‘’,.!?;:'"
_BOX = re.compile(r"\\f?box(?:ed)?\s?\{")
_BRACE = re.compile(r"[{}]")
_DENIED = re.compile(r"(?:\b(?:not|never|nor|neither)|n['’]t)\W*$")
_DENIAL_LENGTH = 12


def bare(text: str) -> str:
    """Return the text without markup and without punctuation around it."""
    return undressed(text).strip(_AROUND)


def undressed(text: str) -> str:
    """Remove Markdown, HTML emphasis, and LaTeX that only formats words."""
    text = without_html(text).translate(_MARKDOWN)
    return _LATEX.sub(" ", text) if "\\" in text else text


def without_html(text: str) -> str:
    """Remove HTML emphasis: `<b>42</b>` becomes `42`. Other tags stay."""
    return _HTML.sub(r"\2", text) if "</" in text else text


def boxed(text: str) -> str | None:
    r"""Content of the text's one `\boxed{…}`; None without a box.

    Several boxes must hold the same; otherwise, or after a `not`, the content is empty: nothing is answered.
    """
    contents, place = [], 0
    while (box := _BOX.search(text, place)) is not None:
        if _DENIED.search(text[max(0, box.start() - _DENIAL_LENGTH) : box.start()]):
            return ""
        place = _closing_brace(text, box.end())
        contents.append(text[box.end() : place].strip())
    if not contents:
        return None
    return contents[0] if len(set(contents)) == 1 else ""


def _closing_brace(text: str, place: int) -> int:
    depth = 1
    for brace in _BRACE.finditer(text, place):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return len(text)
