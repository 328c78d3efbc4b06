"""Markdown and LaTeX that models put around an answer, and how to take it off."""

from __future__ import annotations

import re

_MARKDOWN = str.maketrans("*_`$", "    ")
_LATEX = re.compile(r"\\(?:boxed|text(?:bf)?|math(?:bf|rm))\{|\\[()]|[{}]")
_AROUND = " \n\t()[]\"“”‘’,.!?;:'"


def bare(text: str) -> str:
    """Undressed, and without the marks around it."""
    return undressed(text).strip(_AROUND)


def undressed(text: str) -> str:
    """Without Markdown, and without LaTeX that only dresses words."""
    text = text.translate(_MARKDOWN)
    return _LATEX.sub(" ", text) if "\\" in text else text
