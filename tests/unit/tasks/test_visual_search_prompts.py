import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ral_system.config.commands import TrainConfig
from ral_system.data.chat import ChatRenderer
from ral_system.errors import ConfigError, DataError
from ral_system.families.family import Family
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.rewards.format import extract_answer, format_score
from ral_system.rewards.verifiers.exact import same_words
from ral_system.tasks import visual_search_prompts
from ral_system.tasks.cells import CELL_PX
from ral_system.tasks.visual_search import KINDS, VisualSearch
from ral_system.tasks.visual_search_prompts import VisualSearchPrompts
from ral_system.types import Prompt

Make = Callable[..., VisualSearchPrompts]


@pytest.fixture(scope="module")
def family(tiny_model: Path) -> Family:
    return load_family(tiny_model)


@pytest.fixture
def make(make_config: Callable[..., TrainConfig], family: Family, media: MediaStore) -> Make:
    def made(response_format: Any = "think_answer", *overrides: str) -> VisualSearchPrompts:
        visual_search_prompts.drawn.cache_clear()  # as in another process
        config = make_config("data.train_records=20", *overrides).data
        return VisualSearchPrompts(config, ChatRenderer(family, config.system_prompt), media, format=response_format)

    return made


@pytest.mark.parametrize("response_format", ["think_answer", "answer_only"])
def test_a_cold_start_demonstration_would_get_the_full_reward(make: Make, family: Family, response_format: Any) -> None:
    prompts = make(response_format, "data.glance_share=0")
    other = {"think_answer": "answer_only", "answer_only": "think_answer"}[response_format]
    for i in range(10):
        sample = prompts.demonstration("sft", "train", i)
        *ids, last = sample.response_token_ids
        assert last == family.tokenizer.eos_token_id
        text = family.tokenizer.decode(ids)
        assert format_score(text, response_format) == 1.0, text
        assert format_score(text, other) == 0.0
        assert same_words(extract_answer(text) or "", sample.prompt.answer)
        assert sample.prompt == prompts.question("train", i)
        assert sample.rollout_log_probs == ()
        assert sample.advantage == 0.0


def test_prompts_say_where_their_answer_is_seen(make: Make) -> None:
    prompts = make("think_answer", "data.grid=3")
    record = VisualSearch(0, 3, 9).record("train", 3)
    assert record.kind == "count" and len(record.evidence) == 3
    assert prompts.question("train", 3).evidence == record.evidence
    assert prompts.demonstration("perceive", "train", 3).prompt.evidence == ()


def test_a_cold_start_in_words_shows_the_board_in_the_question(make: Make) -> None:
    shown, told = make("think_answer", "data.grid=3"), make("think_answer", "data.grid=3", "data.sft_in_words=true")
    for i in range(10):
        picture, words = (prompts.demonstration("sft", "train", i) for prompts in (shown, told))
        assert words.response_token_ids == picture.response_token_ids
        assert words.prompt.media == () == words.prompt.evidence and picture.prompt.media
        board, question = words.prompt.question[: -len(picture.prompt.question)], picture.prompt.question
        assert words.prompt.question.endswith(f" {question}")
        record = VisualSearch(0, 3, 9).record("train", i)
        described = dict(pair.split(" ", 1) for pair in re.split(r" (?=[a-c][1-3])", board.strip()))
        assert len(described) == 9
        captioned = re.split(r" (?=[a-c][1-3])", record.caption)
        assert all(described[place] == content for place, content in (pair.split(" ", 1) for pair in captioned))
    assert told.held_out(5) == shown.held_out(5)
    for i in range(5):
        perceived = [prompts.demonstration("perceive", "train", i) for prompts in (shown, told)]
        assert perceived[0] == perceived[1]


def test_a_share_of_the_thoughts_is_a_glance(make: Make, family: Family) -> None:
    def texts(response_format: str, share: float) -> list[str]:
        prompts = make(response_format, f"data.glance_share={share}")
        found = [prompts.demonstration("sft", "train", i) for i in range(60)]
        assert [s.prompt for s in found] == [prompts.question("train", i) for i in range(60)]
        return [family.tokenizer.decode(s.response_token_ids[:-1]) for s in found]

    looked, mixed, glanced = (texts("think_answer", share) for share in (0, 0.5, 1))
    assert {format_score(text, "think_answer") for text in looked + mixed + glanced} == {1.0}
    assert not any("glance" in text for text in looked)
    assert all("<think> glance </think>" in text for text in glanced)
    assert all(m in (look, glance) for m, look, glance in zip(mixed, looked, glanced, strict=True))
    assert 20 <= sum("glance" in text for text in mixed) <= 40
    assert texts("answer_only", 1) == texts("answer_only", 0), "without thinking there is no glance"


def test_a_perceive_demonstration_is_its_prompts_answer(make: Make, family: Family) -> None:
    for i in range(4):
        sample = make().demonstration("perceive", "train", i)
        text = family.tokenizer.decode(sample.response_token_ids[:-1])
        assert same_words(extract_answer(text) or "", sample.prompt.answer)
        assert sample.prompt.kind == "caption"
        assert sample.prompt.id != make().question("train", i).id


def test_the_first_perceive_demonstrations_are_on_small_boards(make: Make, media: MediaStore) -> None:
    def cells(prompt: Prompt) -> int:
        return media.open(prompt.media[0]).width // CELL_PX

    prompts, plain = make("think_answer", "data.small_boards=22", "data.search_from=21"), make()
    small = [prompts.demonstration("perceive", "train", i).prompt for i in (0, 1, 20, 21)]
    assert [cells(prompt) for prompt in small] == [2, 2, 2, 2]
    assert [len(prompt.question.split()) for prompt in small[:3]] == [1 + 4] * 3
    assert small[2] == small[0], "records repeat after 20"
    assert small[3].question.startswith(small[1].question + " find"), "the search begins where it is told to"
    at = [("perceive", "train", 22), ("perceive", "held_out", 0), ("sft", "train", 0)]
    for stage, split, i in at:
        demonstration = prompts.demonstration(stage, split, i)  # type: ignore[arg-type]
        assert cells(demonstration.prompt) == 3
        if i != 22:  # which begins its search earlier
            assert demonstration == plain.demonstration(stage, split, i)  # type: ignore[arg-type]


def test_training_records_repeat_and_held_out_ones_do_not(make: Make) -> None:
    prompts = make("think_answer", "data.glance_share=0")
    for stage in ("perceive", "sft"):
        assert prompts.demonstration(stage, "train", 23) == prompts.demonstration(stage, "train", 3)  # type: ignore[arg-type]
    assert prompts.question("train", 20) == prompts.question("train", 0)
    assert prompts.question("train", 19) != prompts.question("train", 0)
    assert prompts.question("held_out", 20) != prompts.question("held_out", 0)


def test_a_record_is_drawn_once(make: Make, media: MediaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = []
    monkeypatch.setattr(media, "put", lambda image, put=media.put: stored.append(image.size) or put(image))
    prompts = make()
    first = [prompts.demonstration("perceive", "train", i) for i in (3, 23)] + [prompts.question("train", 3)]
    assert stored == [(3 * CELL_PX, 3 * CELL_PX)]
    assert [s.media for s in (first[0].prompt, first[1].prompt, first[2])] == 3 * [make().question("train", 3).media]


def test_the_stages_of_a_run_draw_a_record_once(
    make: Make,
    make_config: Callable[..., TrainConfig],
    family: Family,
    media: MediaStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = make().question("train", 3)
    config, other, stored = make_config("data.train_records=20").data, MediaStore(tmp_path), []
    monkeypatch.setattr(
        MediaStore, "put", lambda self, image, put=MediaStore.put: stored.append(self) or put(self, image)
    )

    def later_stage(store: MediaStore) -> Prompt:
        renderer = ChatRenderer(family, config.system_prompt)
        return VisualSearchPrompts(config, renderer, store, format="think_answer").question("train", 3)

    assert later_stage(media) == first and stored == []
    assert later_stage(other) == first and stored == [other]  # another run has a store of its own


def test_prompts_are_pure_and_ids_tell_splits_and_records_apart(make: Make, media: MediaStore) -> None:
    prompts = make()
    found = [prompts.question(split, i) for split in ("train", "held_out") for i in range(10)]  # type: ignore[arg-type]
    assert [make().question(split, i) for split in ("train", "held_out") for i in range(10)] == found  # type: ignore[arg-type]
    assert len({p.id for p in found}) == 20
    assert [p.kind for p in found[:10]] == [*KINDS, *KINDS]
    for prompt in found:
        assert media.path(prompt.media[0]).is_file()


def test_another_data_seed_is_other_data_and_the_runs_seed_is_not(make: Make) -> None:
    question = make().question("train", 0)
    assert make("think_answer", "data.seed=1").question("train", 0) != question
    assert make("think_answer", "seed=1").question("train", 0) == question


def write_demonstrations(path: Path, prompts: VisualSearchPrompts, *indices: int, **changes: Any) -> str:
    lines = [
        {
            "index": i,
            "question": prompts.question("train", i).question,
            "response": f"<think> look back at a{i + 1} </think>",
        }
        | changes
        for i in indices
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"data.demonstrations={path}"


def test_demonstrations_of_a_file_take_turns_by_index(make: Make, family: Family, tmp_path: Path) -> None:
    given = write_demonstrations(tmp_path / "d.jsonl", make(), 4, 1, 2)
    prompts = make("think_answer", given, "data.glance_share=0.7")
    found = [prompts.demonstration("sft", "train", i) for i in range(4)]
    assert [s.prompt for s in found] == [prompts.question("train", i) for i in (1, 2, 4, 1)]
    texts = [family.tokenizer.decode(s.response_token_ids[:-1]) for s in found]
    assert texts == [f"<think> look back at a{i} </think>" for i in (2, 3, 5, 2)]
    assert prompts.demonstration("perceive", "train", 0).prompt.kind == "caption"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"question": "where ?"},
            r"the demonstration of train/1 answers 'where \?', but here the question is .*; set data.seed",
        ),
        (
            {"response": "<think> zebra </think>"},
            "train/1: the tokenizer has no token for a word of '<think> zebra",
        ),
    ],
)
def test_a_demonstration_that_does_not_fit_is_named(make: Make, tmp_path: Path, changes: Any, says: str) -> None:
    prompts = make("think_answer", write_demonstrations(tmp_path / "d.jsonl", make(), 1, **changes))
    with pytest.raises(DataError, match=says):
        prompts.demonstration("sft", "train", 0)


def test_a_file_without_demonstrations_is_one_line(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"

    def first() -> None:
        prompts = make("think_answer", f"data.demonstrations={path}")
        prompts.question("train", 0)  # what needs no demonstrations does not miss them
        prompts.demonstration("perceive", "train", 0)
        prompts.demonstration("sft", "train", 0)

    with pytest.raises(ConfigError, match=r"d.jsonl: no such file; make it with ral-synthesize, or set it to null"):
        first()
    path.write_text('{"index": 1')
    with pytest.raises(DataError, match=r"holds no demonstration; see rejected.jsonl"):
        first()
    path.write_text('{"index": 0, "question": "", "response": ""}\n{"index": "x", "question": "", "response": ""}\n')
    with pytest.raises(DataError, match=r"row 2 is not a demonstration \(ValueError"):
        first()


def test_a_word_that_nobody_knows_is_found_before_the_first_step(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = [{"index": i, "question": make().question("train", i).question, "response": "look"} for i in range(3)]
    lines[2]["response"] = "zebra"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="train/2: the tokenizer has no token for a word of 'zebra'"):
        make("think_answer", f"data.demonstrations={path}").demonstration("sft", "train", 0)


def test_a_run_s_seed_says_where_it_begins(make: Make) -> None:
    prompts = make()

    def ids(seed: int, split: Any = "train") -> list[str]:
        return [prompts.demonstration("sft", split, i, seed=seed).id for i in range(20)]

    first, second = ids(0), ids(1)
    assert first[:2] == ["train/0", "train/1"] and second[0] == f"train/{7919 % 20}"
    assert sorted(first) == sorted(second) and first != second != ids(2)
    assert ids(0, "held_out") == ids(3, "held_out")
    captions = [prompts.demonstration("perceive", "train", i, seed=1).prompt.question for i in (0, 12800)]
    assert "find" not in captions[0] and "find" in captions[1]  # the order of what is taught is everybody's


def test_boards_of_several_sizes_take_turns(make: Make) -> None:
    prompts, largest = make("think_answer", "data.grid=[2,4]"), make("think_answer", "data.grid=4")
    sides = [
        prompts.question(split, i).media[0].width_px // CELL_PX for split in ("train", "held_out") for i in range(20)
    ]
    assert sides == ([2] * 5 + [4] * 5) * 4
    kinds = [prompts.question("train", i).kind for i in range(10)]
    assert kinds[:5] == kinds[5:] and len(set(kinds)) == 5
    assert prompts.question("train", 7) == largest.question("train", 7)
    assert prompts.question("train", 2) != largest.question("train", 2)
