"""Generated videos: answers follow from the frames, splits are apart, everything is a function of its index."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ral_system.config.commands import TrainConfig
from ral_system.config.data import VideoSearchConfig
from ral_system.data.chat import ChatRenderer
from ral_system.families.qwen_vl.positions import seconds_per_grid
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.rewards.format import format_score
from ral_system.tasks.cells import COLOURS
from ral_system.tasks.video_search import FRAMES_PER_S, VideoRecord, VideoSearch
from ral_system.tasks.video_search_prompts import VideoSearchPrompts
from ral_system.tasks.visual_search import words


def colour_of(frame: np.ndarray) -> str:
    """Return the thing's colour, by the pixels that are clearly not background."""
    inside = frame[np.abs(frame.astype(int) - 240).max(-1) > 150].astype(int)
    middle = np.median(inside, axis=0)
    return min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - middle).sum())


@pytest.mark.parametrize("seconds", [2, 5, 8])
def test_answers_follow_from_the_frames(seconds: int) -> None:
    source, known = VideoSearch(seed=1, seconds=seconds), set(words())
    for i in range(12):
        record = source.record("train", i)
        assert record.frames.shape == (FRAMES_PER_S * seconds, 56, 56, 3)
        assert all((record.frames[::4] == record.frames[later::4]).all() for later in (1, 2, 3))
        told = record.caption.split()
        shown = {told[j]: tuple(told[j + 1 : j + 3]) for j in range(0, len(told), 3)}
        assert sorted(shown) == list("abcdefgh"[:seconds]) and len({thing for thing, _ in shown.values()}) == seconds
        assert record.caption_question.split()[1:] == told[::3]
        found = record.search.split()
        assert len(found) == 3 * seconds and record.search_question.split()[1:] == found[::3]
        sought = zip(found[::3], found[1::3], found[2::3], strict=True)
        assert all(shown[second] == (thing, colour) for thing, second, colour in sought)
        assert [shown[s][1] for s in sorted(shown)] == [colour_of(f) for f in record.frames[::4]]
        asked = record.question.split()[-2]
        if record.kind == "when":
            assert shown[record.answer][0] == asked
        elif record.kind == "what":
            assert record.answer == " ".join(shown[asked])
        else:
            assert (asked, record.answer) in shown.values()
        told_of = record.caption if record.kind == "what" else record.search
        assert f" {record.thought} " in f" {told_of} "
        every = [record.question, record.thought, record.answer, record.caption, record.search_question, record.search]
        assert set(" ".join(every).split()) <= known


def triple(told: str) -> list[tuple[str, ...]]:
    return list(zip(*[iter(told.split())] * 3, strict=True))


def test_the_evidence_is_where_and_when_the_thing_is_seen() -> None:
    for i in range(12):
        record = VideoSearch(seed=1, seconds=5).record("train", i)
        (region,) = record.evidence
        (second,) = (word for word in record.thought.split() if word in "abcde")
        assert (region.start_s, region.end_s) == ("abcde".index(second), "abcde".index(second) + 1)
        frame = record.frames[FRAMES_PER_S * "abcde".index(second)]
        rows, columns = np.nonzero((frame != 240).any(-1))
        assert region.left * 56 <= columns.min() and columns.max() < region.right * 56 == region.left * 56 + 28
        assert region.top * 56 <= rows.min() and rows.max() < region.bottom * 56 == region.top * 56 + 28


def test_prompts_say_where_their_answer_is_seen(make: Callable[..., VideoSearchPrompts]) -> None:
    prompts = make("data.seconds=8")
    record = VideoSearch(0, 8).record("train", 3)
    assert prompts.question("train", 3).evidence == record.evidence
    assert prompts.demonstration("sft", "train", 3).prompt.evidence == record.evidence
    assert prompts.demonstration("perceive", "train", 3).prompt.evidence == ()


def content(record: VideoRecord) -> str:
    told = record.caption.split()
    seconds = sorted((told[j], told[j + 1], told[j + 2]) for j in range(0, len(told), 3))
    return " ".join(f"{thing} {colour}" for _, thing, colour in seconds)


def test_records_are_functions_of_their_index_and_splits_do_not_meet() -> None:
    source = VideoSearch(seed=0, seconds=2)
    train, held_out = ([source.record(split, i) for i in range(60)] for split in ("train", "held_out"))
    assert {content(r) for r in train} & {content(r) for r in held_out} == set()
    again = VideoSearch(seed=0, seconds=2).record("train", 7)
    assert again.question == train[7].question and (again.frames == train[7].frames).all()
    assert VideoSearch(seed=1, seconds=2).record("train", 7).caption != train[7].caption


def test_a_caption_may_name_some_seconds_only() -> None:
    for i in range(4):
        whole, some = VideoSearch(0, 7).record("train", i), VideoSearch(0, 7, described=4).record("train", i)
        assert len(some.caption.split()) == 12 and whole.caption.startswith(f"{some.caption} ")
        assert whole.caption_question.startswith(f"{some.caption_question} ")
        found = [triple(record.search) for record in (whole, some)]
        assert len(found[1]) == 4 and found[1] == [one for one in found[0] if one in found[1]]
        assert some.search_question.split() == ["find", *(thing for thing, _, _ in found[1])]
        assert some.question == whole.question and (some.frames == whole.frames).all()


def test_a_number_of_seconds_that_cannot_be_is_refused() -> None:
    for seconds in (1, 9):
        with pytest.raises(ValueError, match=r"seconds must be 2\.\.8"):
            VideoSearch(0, seconds)


@pytest.fixture
def make(
    make_config: Callable[..., TrainConfig], tiny_model: Path, tmp_path: Path
) -> Callable[..., VideoSearchPrompts]:
    def made(*overrides: str, response_format: str = "think_answer") -> VideoSearchPrompts:
        data = make_config("data=video_search", "data.train_records=40", *overrides).data
        assert isinstance(data, VideoSearchConfig)
        renderer = ChatRenderer(load_family(tiny_model), data.system_prompt)
        return VideoSearchPrompts(data, renderer, MediaStore(tmp_path), response_format=response_format)  # type: ignore[arg-type]

    return made


def test_prompts_hold_the_sampled_frames(make: Callable[..., VideoSearchPrompts], tmp_path: Path) -> None:
    for frames in (4, 32, 48):
        prompt = make("data.seconds=8", f"data.max_frames={frames}").question("train", 3)
        (medium,) = prompt.media
        shown = min(frames, 32)
        assert medium.frames == shown and medium.clip is not None
        assert seconds_per_grid(medium.clip) == 2 * 8 / shown
        expected = VideoSearch(0, 8).record("train", 3).frames[np.linspace(0, 31, shown).round().astype(int)]
        assert (MediaStore(tmp_path).frames(medium) == expected).all()
    assert len(list(tmp_path.rglob("*.video"))) == 1  # the same video, however many frames are looked at


def test_two_frames_a_second_stand_in_one_patch(make: Callable[..., VideoSearchPrompts], tmp_path: Path) -> None:
    (medium,) = make("data.seconds=8", "data.max_frames=16").question("train", 3).media
    assert (MediaStore(tmp_path).frames(medium) == VideoSearch(0, 8).record("train", 3).frames[::2]).all()


def test_frames_take_turns(make: Callable[..., VideoSearchPrompts]) -> None:
    prompts = make("data.seconds=8", "data.max_frames=[4,16]")
    questions = [prompts.question(split, i) for split in ("train", "held_out") for i in range(12)]
    assert [q.media[0].frames for q in questions] == [4, 4, 4, 16, 16, 16] * 4
    assert questions[3] == make("data.seconds=8", "data.max_frames=16").question("train", 3)
    mixed = make("data.seconds=[2,8]", "data.max_frames=[2,32]")
    assert [mixed.question("train", i).media[0].frames for i in range(14)] == [2] * 6 + [8] * 3 + [32] * 3 + [2] * 2
    assert mixed.question("train", 9) == make("data.seconds=8", "data.max_frames=32").question("train", 9)


def test_demonstrations_would_get_the_full_reward(make: Callable[..., VideoSearchPrompts], tiny_model: Path) -> None:
    decode = load_family(tiny_model).tokenizer.decode
    for response_format in ("think_answer", "answer_only"):
        prompts = make(response_format=response_format)
        for i in range(4):
            sample = prompts.demonstration("sft", "train", i)
            text = decode(sample.response_token_ids[:-1])
            assert format_score(text, response_format) == 1.0 and f"<answer> {sample.prompt.answer} </answer>" in text  # type: ignore[arg-type]
            assert sample.prompt == prompts.question("train", i)
    caption = make().demonstration("perceive", "held_out", 1)
    record = VideoSearch(0, 8).record("held_out", 1)
    assert caption.prompt.question == f"{record.caption_question} {record.search_question}"
    assert decode(caption.response_token_ids[:-1]) == f"<answer> {record.caption} {record.search} </answer>"
    assert make().question("train", 41).id == make().question("train", 1).id
