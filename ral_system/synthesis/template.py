"""The offline generators: what the three roles would say about a known scene."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ral_system.synthesis.rows import MalformedError, Role, Row
from ral_system.tasks.visual_search import COLUMN_NAMES

ANCHOR = "look back at"
_POSITION = re.compile(rf"\b[{COLUMN_NAMES}][1-8]\b")


class TemplateGenerator:
    """The describer tells the scene cell by cell, the reasoner the cells that the answer follows from, and the anchorer
    puts `look back at` before every cell's name that a reasoning mentions, also if another model wrote it.
    """

    deterministic = True

    def __init__(self, role: Role) -> None:
        self._role = role

    async def check(self) -> None:
        """Do nothing: a template is always available."""

    async def generate(self, row: Row, texts: Mapping[Role, str]) -> str:
        """This role's text. Raises MalformedError for a reasoning to anchor that has no thought."""
        record = row.record
        if self._role == "describer":
            return record.caption
        if self._role == "reasoner":
            return f"<think> {record.thought} </think> <answer> {record.answer} </answer>"
        before, opening, rest = texts["reasoner"].partition("<think>")
        thought, closing, after = rest.partition("</think>")
        if not closing:
            raise MalformedError("the reasoning has no <think> </think> to put anchors into")
        return before + opening + _POSITION.sub(lambda found: f"{ANCHOR} {found[0]}", thought) + closing + after

    async def close(self) -> None:
        """Nothing to let go of."""
