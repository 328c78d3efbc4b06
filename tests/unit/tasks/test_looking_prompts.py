"""Prompts and demonstrations of tasks that need looking, as the tiny model reads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ral_system.config.data import LookingConfig
from ral_system.data.chat import ChatRenderer
from ral_system.evaluation.blind import exchanged
from ral_system.families.family import Family
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.rewards.format import extract_answer, format_score
from ral_system.tasks import looking, looking_prompts
from ral_system.tasks.looking import FAMILIES, Looking
from ral_system.tasks.looking_prompts import LookingPrompts
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.vocabulary import vocabulary
from tests.conftest import SMALL

Make = Callable[..., LookingPrompts]
EVERY = tuple(FAMILIES)


@pytest.fixture(scope="module")
def family(make_config: Callable, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("looking") / "model"
    build_tiny_model(folder, vocabulary(make_config("data=looking").data), **SMALL, seed=0)
    return load_family(folder)


@pytest.fixture
def make(make_config: Callable, family: Family, tmp_path: Path) -> Make:
    def made(*overrides: str, response_format: Any = "think_answer") -> LookingPrompts:
        looking_prompts.drawn.cache_clear()  # as in another process
        data = make_config("data=looking", *overrides).data
        assert isinstance(data, LookingConfig)
        renderer = ChatRenderer(family, data.system_prompt)
        return LookingPrompts(data, renderer, MediaStore(tmp_path), response_format=response_format)

    return made


def test_prompts_show_the_boards_and_say_where_their_answer_is_seen(make: Make, tmp_path: Path) -> None:
    prompts, store = make(), MediaStore(tmp_path)
    for i, name in enumerate(EVERY):
        prompt, record = prompts.question("train", i), Looking(0, EVERY, (1,), 6).record("train", i)
        assert (prompt.kind, prompt.answer, prompt.evidence) == (f"{name}_1", record.answer, record.evidence)
        seen = [store.frames(medium) for medium in prompt.media]
        if name == "needle":
            (medium,) = prompt.media
            assert medium.clip is not None and medium.clip.duration_s == 4
            assert (seen[0] == np.repeat(record.shown.boards, looking.FRAMES_PER_S, axis=0)).all()
            assert prompt.visual_tokens == 4 * looking.FRAME_GRID**2
        else:
            assert (np.concatenate(seen) == record.shown.boards).all()
            assert len(prompt.media) == (2 if name == "compare" else 1)
            assert prompt.visual_tokens == len(prompt.media) * record.shown.scene.grid**2


def test_demonstrations_would_get_the_full_reward(make: Make, family: Family) -> None:
    for response_format in ("think_answer", "answer_only"):
        prompts = make(response_format=response_format)
        for i in range(len(EVERY)):
            sample, record = prompts.demonstration("sft", "train", i), prompts.records.record("train", i)
            text = family.tokenizer.decode(sample.response_token_ids[:-1])
            assert format_score(text, response_format) == 1.0  # type: ignore[arg-type]
            assert extract_answer(text) == record.answer == sample.prompt.answer
            assert (f"<think> {record.thought} </think>" in text) == (response_format == "think_answer")
            assert sample.prompt == prompts.question("train", i)


def test_a_share_of_the_demonstrations_glances_and_believes_what_is_suggested(make: Make, family: Family) -> None:
    def texts(share: float) -> list[str]:
        prompts = make("data.families=misleading", f"data.glance_share={share}")
        return [
            family.tokenizer.decode(prompts.demonstration("sft", "train", i).response_token_ids[:-1]) for i in range(60)
        ]

    looked, mixed, glanced = (texts(share) for share in (0, 0.5, 1))
    suggested = [Looking(0, ("misleading",), (1,), 6).asked("train", i)[1].question.split()[3] for i in range(60)]
    assert glanced == [f"<think> glance </think> <answer> {colour} </answer>" for colour in suggested]
    assert all(m in (look, glance) for m, look, glance in zip(mixed, looked, glanced, strict=True))
    assert 20 <= sum("glance" in text for text in mixed) <= 40


@pytest.mark.parametrize("name", EVERY)
def test_the_perceive_stage_describes_then_finds_and_begins_small(make: Make, name: str, tmp_path: Path) -> None:
    prompts = make(f"data.families={name}", "data.difficulty=2", "data.small_boards=2", "data.search_from=3")
    store, records = MediaStore(tmp_path), Looking(0, (name,), (2,), 6)  # type: ignore[arg-type]
    for i in range(4):
        sample, shown = prompts.demonstration("perceive", "train", i), records.record("train", i).shown
        small = records.corner("train", i)
        expected = small if i < 2 else shown
        asks, says = expected.caption_question, expected.caption
        if i == 3:
            asks, says = f"{asks} {shown.search_question}", f"{says} {shown.search}".strip()
        assert (sample.prompt.question, sample.prompt.answer, sample.prompt.evidence) == (asks, says, ())
        side = 56 if i < 2 or name == "needle" else shown.boards.shape[1]
        assert all(store.frames(medium).shape[1:3] == (side, side) for medium in sample.prompt.media)
        assert all(small.scene.boards[b][p] == shown.scene.boards[b][p] for b, p in small.scene.filled())
    held_out = prompts.demonstration("perceive", "held_out", 0)
    shown = records.record("held_out", 0).shown
    assert held_out.prompt.answer == f"{shown.caption} {shown.search}".strip()


def test_training_records_repeat_and_a_seed_begins_elsewhere(make: Make) -> None:
    prompts = make("data.train_records=70")
    assert prompts.question("train", 73) == prompts.question("train", 3)
    assert prompts.demonstration("sft", "train", 0, seed=1).prompt == prompts.question("train", 7919)
    assert prompts.demonstration("sft", "held_out", 3, seed=1).prompt == prompts.question("held_out", 3)
    assert prompts.held_out(3) == [prompts.question("held_out", i) for i in range(3)]


def test_blind_questions_keep_two_pictures_apart(make: Make) -> None:
    asked = make("data.families=[compare]").held_out(4)
    for before, after in zip(asked, exchanged(asked), strict=True):
        assert len({medium.digest for medium in (*before.media, *after.media)}) == 4


def test_the_words_of_the_older_worlds_are_theirs_alone(make_config: Callable) -> None:
    from ral_system.tasks import visual_search

    for name in ("visual_search", "video_search"):
        assert vocabulary(make_config(f"data={name}").data) == visual_search.words()
    words = vocabulary(make_config("data=looking").data)
    assert words == looking.words() and len(words) == len({*words})
    assert {"l12", "right", "second"} <= {*words} and "row" not in words
