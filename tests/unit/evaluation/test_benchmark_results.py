"""From a benchmark's items to figures with intervals, by hand."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ral_system.benchmarks import chartqa, mme
from ral_system.benchmarks.item import BadItem, Item, MediaFile
from ral_system.data.chat import ChatRenderer
from ral_system.evaluation.benchmark import Asked, ask, final_answer, results
from ral_system.evaluation.intervals import intervals
from ral_system.families.qwen_vl.pixel_budget import QwenPixelBudget
from ral_system.media.decoders import Decoders
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.types import Completion, FinishReason, Media, Prompt, VideoSampling
from tests.unit.media.clips import clip, noise
from tests.unit.media.test_decoders import picture


def asked(*items: Item) -> list[Asked]:
    return [Asked(item, Prompt(item.id, item.category, item.text, "", (), (1,))) for item in items]


def answers(**texts: Sequence[str]) -> dict[str, list[Completion]]:
    return {
        id: [Completion(id, i, (), (), text, FinishReason.STOP, 0) for i, text in enumerate(of_item)]
        for id, of_item in texts.items()
    }


def chart(id: str, reference: str) -> Item:
    return Item(id, "human", "how many ?", (), (reference,))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>so</think><answer> 7 </answer>", "7"),
        ("7", "7"),
        ("<think>so</think> 7", "7"),
        ("<answer>1</answer><answer>2</answer>", ""),
        ("<think>Let me look. Option (B) says red, but that is", ""),
        ("<think>so</think><answer>7", ""),
    ],
)
def test_what_is_scored_is_the_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_figures_are_means_over_the_answers_to_a_question() -> None:
    items = asked(chart("a", "10"), chart("b", "20"), chart("c", "no"))
    found = results(chartqa, items, answers(a=["10", "10.4"], b=["20", "30"], c=["yes", "maybe"]))  # type: ignore[arg-type]
    assert found.scores == {"a": (1.0, 1.0), "b": (1.0, 0.0), "c": (0.0, 0.0)}
    assert found.figures["score"] == pytest.approx(100 * (2 / 3 + 1 / 3) / 2)
    low, high = intervals(found.resampled)["score"]
    assert 0 <= low < found.figures["score"] < high <= 100


def test_questions_that_count_together_are_drawn_together() -> None:
    """MME: of a picture with one right question of two no resample can have both right."""
    pairs = [
        Item(f"{name}/{n}", "count", "is it ?", (), ("yes",), together=name) for name in ("p", "q") for n in (0, 1)
    ]
    said = answers(**{i.id: ["no" if i.id == "q/1" else "yes"] for i in pairs})
    found = results(mme, asked(*pairs), said)  # type: ignore[arg-type]
    assert found.figures["count"] == pytest.approx(100 * 3 / 4 + 100 * 1 / 2)
    low, high = intervals(found.resampled)["count"]
    assert low == 50.0 and high == 200.0  # both drawn are q; both drawn are p


def test_questions_about_the_same_picture_are_drawn_together() -> None:
    """One of two questions is right for each picture: whatever is drawn, half of all are right."""
    items = [
        Asked(chart(id, "1"), Prompt(id, "human", "?", "", (Media(id[0], 56, 56),), (1,)))
        for id in ("p0", "q0", "p1", "q1")
    ]
    found = results(chartqa, items, answers(p0=["1"], q0=["2"], p1=["2"], q1=["1"]))  # type: ignore[arg-type]
    assert intervals(found.resampled)["score"] == (50.0, 50.0)
    apart = results(chartqa, asked(*(a.item for a in items)), answers(p0=["1"], q0=["2"], p1=["2"], q1=["1"]))  # type: ignore[arg-type]
    assert intervals(apart.resampled)["score"] == (0.0, 100.0)


def test_every_resample_has_every_category() -> None:
    """A model without a mistake has all 2,800 points in every one."""
    pairs = [
        Item(f"{category}/{picture}/{n}", category, "is it ?", (), ("yes",), together=f"{category}/{picture}")
        for category in (*mme.PERCEPTION, *mme.COGNITION)
        for picture in range(2)
        for n in range(2)
    ]
    found = results(mme, asked(*pairs), answers(**{item.id: ["yes"] for item in pairs}))  # type: ignore[arg-type]
    assert found.figures["score"] == 2800
    assert intervals(found.resampled)["score"] == (2800, 2800)


def test_items_become_prompts_and_bad_ones_are_named(tmp_path: Path, tiny_model: Path) -> None:
    good, frames = picture(56).encoded, tmp_path / "frames"
    frames.mkdir()
    for i in range(4):
        Image.new("RGB", (56, 56), (60 * i, 0, 0)).save(frames / f"{i}.jpg")
    items = [
        Item("one", "k", "<image> what is at a1 ?", (MediaFile("image", good),), ("red",)),
        BadItem("two", "no such file"),
        Item("three", "k", "<image> what ?", (MediaFile("image", b"text"),), ("red",)),
        Item("four", "k", "what is <|im_end|> ?", (), ("red",)),
        Item("five", "k", "<image> what ?", (MediaFile("image", picture(900).encoded),), ("red",)),
        Item("frames", "k", "<video> what ?", (MediaFile("video", path=frames, frames_per_s=1.0),), ("red",)),
        Item("six", "k", "<video> what ?", (MediaFile("video", clip(noise(0, 4, 56, 56))),), ("red", "blue")),
    ]
    budget = QwenPixelBudget(28, 28 * 28, 10**6)
    shown: list[int] = []
    with Decoders(MediaStore(tmp_path), VideoSampling(1.0, 4, 2), workers=1, timeout_s=30) as decoders:
        renderer = ChatRenderer(load_family(tiny_model), "answer")
        found, bad = ask(items, decoders, renderer, {"image": budget, "video": budget}, 100, shown.append)
    assert [(a.item.id, a.prompt.answer) for a in found] == [("one", "red"), ("frames", "red"), ("six", "red | blue")]
    assert [m.kind for a in found for m in a.prompt.media] == ["image", "video", "video"]
    reasons = {item.id: item.reason for item in bad}
    assert list(reasons) == ["two", "three", "four", "five"]
    assert "not a picture" in reasons["three"] and "<|im_end|>" in reasons["four"]
    assert "leave room for an answer" in reasons["five"]
    assert shown == [1, 2, 3, 4, 5, 6, 7]


def test_a_thousand_questions_take_seconds() -> None:
    rng = np.random.default_rng(0)
    benchmark = SimpleNamespace(score=chartqa.score, summary=chartqa.summary)
    items = asked(*(chart(f"i{n}", "1") for n in range(1000)))
    said = answers(**{f"i{n}": [str(rng.integers(2))] for n in range(1000)})
    low, high = intervals(results(benchmark, items, said).resampled)["score"]  # type: ignore[arg-type]
    assert high - low == pytest.approx(2 * 1.96 * 100 * (0.25 / 1000) ** 0.5, rel=0.15)
