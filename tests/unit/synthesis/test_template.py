"""The offline generators pass every check, for every kind of question, in words that the tokenizer knows."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ral_system.config.commands import SynthesizeConfig
from ral_system.data.chat import ChatRenderer
from ral_system.models.loading import load_family
from ral_system.synthesis.checks import check_anchored, check_description, check_reasoning
from ral_system.synthesis.rows import ROLES, MalformedError, Role, Row
from ral_system.synthesis.template import TemplateGenerator
from ral_system.tasks.visual_search import KINDS, VisualSearch


def texts_of(row: Row) -> dict[Role, str]:
    texts: dict[Role, str] = {}
    for role in ROLES:
        texts[role] = asyncio.run(TemplateGenerator(role).generate(row, texts))
    return texts


@pytest.mark.parametrize("grid", [2, 8])
def test_every_kind_of_question_passes_every_check(
    grid: int, make_config: Callable[..., SynthesizeConfig], tiny_model: Path
) -> None:
    anchor = re.compile(make_config(kind=SynthesizeConfig).synthesis.anchor, re.IGNORECASE)
    renderer = ChatRenderer(load_family(tiny_model), "answer")
    source = VisualSearch(seed=0, grid=grid, objects=4)
    for i in range(2 * len(KINDS)):
        record = source.record("train", i)
        texts = texts_of(Row(record))
        assert check_description(texts["describer"]) is None
        assert check_reasoning(texts["reasoner"], record.answer) is None
        assert check_anchored(texts["anchorer"], record.answer, texts["reasoner"], anchor) is None
        assert len(renderer.response(texts["anchorer"])) > len(renderer.response(texts["reasoner"]))


def test_anchors_stand_before_the_cells_that_a_reasoning_names() -> None:
    record = VisualSearch(seed=0, grid=3, objects=9).record("train", 0)
    reasoning = "<think> the 7 in b2, not a1; a12 is none </think> <answer> a1 </answer>"
    found = asyncio.run(TemplateGenerator("anchorer").generate(Row(record), {"reasoner": reasoning}))
    assert found == (
        "<think> the 7 in look back at b2, not look back at a1; a12 is none </think> <answer> a1 </answer>"
    )


def test_a_reasoning_without_a_thought_cannot_be_anchored() -> None:
    record = VisualSearch(seed=0, grid=3, objects=9).record("train", 0)
    with pytest.raises(MalformedError, match="no <think> </think>"):
        asyncio.run(TemplateGenerator("anchorer").generate(Row(record), {"reasoner": "a1"}))
