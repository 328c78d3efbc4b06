"""Where answers are to be seen: what a rectangle may be, and that it stays what it is on its way between processes."""

import dataclasses
import json
import pickle
from typing import Any

import pytest

from ral_system.types import Clip, Media, Prompt, Region, VideoSampling

PICTURE = Media("a", 84, 56)
VIDEO = Media("b", 84, 56, Clip(VideoSampling(1, 4, 2), (0.0, 1.0, 2.0, 3.0), 4.0))
QUARTER = Region(0.5, 0.0, 1.0, 0.5)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"right": 1.002}, r"right=1.002: not in \[0, 1\]; give fractions"),
        ({"left": -0.1}, r"left=-0.1: not in \[0, 1\]"),
        ({"bottom": float("nan")}, r"bottom=nan: not in \[0, 1\]"),
        ({"left": 1.0}, r"right=1.0: not above left=1.0; swap or correct"),
        ({"top": 0.7}, r"bottom=0.5: not above top=0.7"),
        ({"start_s": 2.0, "end_s": 2.0}, r"end_s=2.0: not above start_s=2.0"),
        ({"start_s": -1.0}, r"start_s=-1.0: before the video's first frame"),
    ],
)
def test_what_is_not_a_rectangle_is_refused_by_field_and_value(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        dataclasses.replace(QUARTER, **given)


@pytest.mark.parametrize(
    ("region", "says"),
    [
        (dataclasses.replace(QUARTER, medium=2), r"evidence\[1\].medium=2: the prompt has 2 media, counted from 0"),
        (dataclasses.replace(QUARTER, medium=-1), r"evidence\[1\].medium=-1: the prompt has 2 media"),
        (dataclasses.replace(QUARTER, start_s=1.0), r"evidence\[1\].start_s=1.0: a picture has no seconds"),
    ],
)
def test_evidence_is_of_the_prompts_media(region: Region, says: str) -> None:
    with pytest.raises(ValueError, match=f"^prompt p: {says}"):
        Prompt("p", "", "", "", (PICTURE, VIDEO), (1, 2), evidence=(QUARTER, region))


def test_a_second_begins_with_its_first_moment_and_ends_before_the_next() -> None:
    second = dataclasses.replace(QUARTER, medium=1, start_s=1.0, end_s=2.0)
    assert [second.holds(time) for time in (0.9, 1.0, 1.9, 2.0)] == [False, True, True, False]
    assert QUARTER.holds(7.0) and QUARTER.holds(None) and not second.holds(None)


def test_it_survives_pickle_and_json() -> None:
    second = dataclasses.replace(QUARTER, medium=1, start_s=1.0, end_s=2.0)
    prompt = Prompt("p", "", "", "", (PICTURE, VIDEO), (1, 2), evidence=(QUARTER, second))
    assert pickle.loads(pickle.dumps(prompt)).evidence == prompt.evidence  # noqa: S301 (our own)
    lines = json.loads(json.dumps(dataclasses.asdict(prompt)))["evidence"]
    assert tuple(Region(**line) for line in lines) == prompt.evidence
