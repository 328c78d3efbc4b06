"""What a sweep changes, and its chart."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ral_system.config.commands import TrainConfig
from ral_system.config.data import FilesConfig, VideoSearchConfig, VisualSearchConfig
from ral_system.errors import ConfigError, DataError
from ral_system.evaluation import sweep
from ral_system.evaluation.questions import Figures, Questions
from ral_system.evaluation.sweep import Gain, at, gains_over_first, in_common, mean_seen
from ral_system.families.family import Family
from ral_system.models.loading import load_family
from ral_system.report.sweep_chart import SweepPoint, sweep_chart
from ral_system.tasks.open import QuestionSettings
from ral_system.tasks.visual_search_prompts import VisualSearchRecords
from ral_system.types import Clip, Media, Prompt, VideoSampling

Make = Callable[..., TrainConfig]
FILES = ("data=video_r1", "data.sources.main.path=rows.json", "stages=[rl]")


@pytest.fixture(scope="module")
def family(tiny_model: Path) -> Family:
    return load_family(tiny_model)


def test_a_board_grows_and_holds_as_many_things(make_config: Make, family: Family) -> None:
    settings = QuestionSettings.of(make_config("data.objects=9"))
    small, large = (at(settings, "visual_tokens", cells, family).data for cells in (4, 64))
    assert isinstance(small, VisualSearchConfig) and isinstance(large, VisualSearchConfig)
    assert small.grid == (2,)
    assert large.grid == (8,)
    assert [VisualSearchRecords(data).record("train", 0).caption.count("empty") for data in (small, large)] == [0, 55]


def test_a_video_is_looked_at_more_closely(make_config: Make, family: Family) -> None:
    data = at(QuestionSettings.of(make_config("data=video_search")), "frames", 4, family).data
    assert isinstance(data, VideoSearchConfig) and data.max_frames == (4,)


def test_pictures_and_frames_of_files_are_bounded(make_config: Make, family: Family) -> None:
    settings = QuestionSettings.of(make_config(*FILES, "data.video.min_frames=4"))
    data = at(settings, "visual_tokens", 512, family).data
    assert isinstance(data, FilesConfig)
    assert (data.image.min_pixels, data.image.max_pixels) == (128 * 28 * 28, 512 * 28 * 28)
    with pytest.raises(ConfigError, match=r"sweep.values=64 is 50176 pixels; a picture has 100352 to"):
        at(settings, "visual_tokens", 64, family)
    least = at(settings, "visual_tokens", 128, family).data
    assert isinstance(least, FilesConfig) and least.image.max_pixels == least.image.min_pixels
    assert family.pixel_budgets(least)["image"].size(1920, 1080) == (420, 224)
    few, many = (at(settings, "frames", frames, family).data for frames in (2, 32))
    assert isinstance(few, FilesConfig) and isinstance(many, FilesConfig)
    assert (few.video.min_frames, few.video.max_frames) == (2, 2)
    assert (many.video.min_frames, many.video.max_frames) == (4, 32)


def test_every_point_is_asked_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    def questions(*ids: str) -> Questions:
        return Questions([Prompt(id, "kind", "?", "!", (), (1,)) for id in ids], total=4, available=4)

    found = in_common(
        {("one", 4): questions("a", "b", "c"), ("one", 9): questions("b", "c"), ("two", 4): questions("c", "b")}
    )
    assert [[prompt.id for prompt in q.prompts] for q in found.values()] == [["b", "c"]] * 3
    assert {q.total for q in found.values()} == {4}
    assert "1 questions cannot be asked at some value; all points leave them out" in capsys.readouterr().err
    same = {("one", 4): questions("a"), ("one", 9): questions("a")}
    assert in_common(same) == same and not capsys.readouterr().err
    with pytest.raises(DataError, match=r"at every one of sweep\.values"):
        in_common({("one", 4): questions("a"), ("one", 9): questions("b")})


def test_a_gain_has_the_interval_of_the_difference() -> None:
    """One model is better by 5 points in every resample, however much those differ."""

    def evaluated(score: float, draws: list[float]) -> Figures:
        return Figures("", {"v/score": score}, "v/score", {}, {"v/score": np.array(draws)}, {}, (), {})

    found = {
        ("one", 4): evaluated(50, [40, 60]),
        ("two", 4): evaluated(55, [45, 65]),
        ("one", 9): evaluated(60, [60, 60]),
        ("two", 9): evaluated(58, [50, 70]),
    }
    assert gains_over_first(found) == {
        ("two", 4): Gain(5, "one", (5, 5)),
        ("two", 9): Gain(-2, "one", pytest.approx((-9.5, 9.5))),
    }
    alone = {point: replace(f, resampled={}) for point, f in found.items() if point[1] == 4}
    assert gains_over_first(alone) == {("two", 4): Gain(5, "one", None)}


def test_what_is_seen_is_said_beside_the_most_of_it(family: Family) -> None:
    clip = Clip(VideoSampling(1.0, 8, 2), (0.0, 1.0, 2.0, 3.0), 4.0)
    pictures = [Media("a", 56, 56), Media("b", 112, 56), Media("c", 56, 56, clip)]
    prompts = [Prompt("p", "kind", "?", "!", (), (1,)), Prompt("q", "kind", "?", "!", tuple(pictures), (1,))]
    assert mean_seen("visual_tokens", family, prompts) == (4 + 8) / 2
    assert mean_seen("frames", family, prompts) == 4
    with pytest.raises(ConfigError, match="questions have no videos; choose the other axis"):
        mean_seen("frames", family, prompts[:1])


def test_the_chart_has_a_line_per_model_and_a_bar_per_point() -> None:
    lines = {
        "GRPO & co": [SweepPoint(2048, 0.7, 0.6, 0.8), SweepPoint(512, 0.5, 0.4, 0.6)],
        "RAL": [SweepPoint(512, 0.55, 0.5, 0.6), SweepPoint(1024, 0.7, 0.65, 0.75), SweepPoint(2048, 0.9, 0.8, 1.0)],
    }
    svg = sweep_chart("V*", "visual tokens", "score", lines)
    root = ElementTree.fromstring(svg)
    told = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert told[0] == "GRPO & co at 512: 0.5 (0.4 to 0.6)" and len(told) == 5
    circles = [
        (float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter("{http://www.w3.org/2000/svg}circle")
    ]
    ral = circles[2:]
    assert ral[1][0] - ral[0][0] == pytest.approx(ral[2][0] - ral[1][0])  # logarithmic
    assert ral[0][1] > ral[1][1] > ral[2][1]
    assert abs(circles[0][0] - ral[0][0]) == 3  # beside each other
    paths = [re.findall(r"[ML]", p.get("d", "")) for p in root.iter("{http://www.w3.org/2000/svg}path")]
    assert ["M", "L"] in paths and ["M", "L", "L"] in paths


def test_a_chart_of_one_point_is_drawn() -> None:
    assert "<circle" in sweep_chart("one", "x", "y", {"a": [SweepPoint(4, 0.5, 0.5, 0.5)]})


def test_a_point_stands_where_it_was_seen() -> None:
    """Eight frames were asked for, and four were there."""
    few, many = (Figures("t", {"s": 1.0}, "s", {}, {}, {}, (), {}) for _ in range(2))
    svg = sweep._chart("run", "frames", {("m", 2): few, ("m", 8): many}, {("m", 2): 2.0, ("m", 8): 4.0})
    assert "m at 4: 1 (1 to 1)" in svg and "at 8" not in svg and ">4<" in svg


def test_numbers_below_the_axis_do_not_run_into_each_other() -> None:
    svg = sweep_chart("t", "x", "y", {"a": [SweepPoint(x, 0.5, 0.4, 0.6) for x in (4, 15.9, 16, 64)]})
    assert [f'middle">{x}<' in svg for x in ("4", "15.9", "16", "64")] == [True, True, False, True]
