"""Questions with the attended part of their pictures, or all but that."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ral_system.evaluation.attended import attended_parts, most_attended, seen_blocks
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.types import Layout, Prompt, VideoSampling, View

PICTURE = Layout("image", (View(2, 2),))
FILM = Layout("video", (View(1, 2, frame=0), View(1, 2, frame=1)))


@pytest.mark.parametrize(
    ("share", "chosen"), [(0.01, [5]), (0.2, [1, 5]), (0.5, [1, 4, 5, 7]), (0.99, [0, 1, 2, 3, 4, 5, 6, 7])]
)
def test_the_most_attended_tokens_of_all_media_are_chosen(share: float, chosen: list[int]) -> None:
    visual = np.array([0.01, 0.3, 0.02, 0.02, 0.2, 0.4, 0.0, 0.05])
    assert np.flatnonzero(most_attended(visual, [PICTURE, FILM], share)).tolist() == chosen


def test_a_tie_goes_to_the_earlier_token_and_line_ends_are_never_chosen() -> None:
    lines = Layout("image", (View(2, 2, line_end=True),))
    visual = np.array([0.1, 0.1, 0.9, 0.1, 0.1, 0.8])
    assert np.flatnonzero(most_attended(visual, [lines], 0.5)).tolist() == [0, 1]


def test_blocks_are_those_of_the_medium_and_frame_of_their_token() -> None:
    chosen = np.zeros(8, bool)
    chosen[[2, 5, 6]] = True
    picture, film = seen_blocks(chosen, [PICTURE, FILM])
    assert picture.tolist() == [[[False, False], [True, False]]]
    assert film.tolist() == [[[False, True]], [[True, False]]]


def test_a_tile_and_the_whole_picture_show_the_same_blocks() -> None:
    """The whole picture as 1 × 1 token, its left half as 2 × 2 with line ends, its right half as 1 × 1."""
    tiles = (
        View(1, 1),
        View(2, 2, box=(0.0, 0.0, 0.5, 1.0), line_end=True),
        View(1, 1, box=(0.5, 0.0, 1.0, 1.0)),
    )
    layout = Layout("image", tiles, separated=True)
    seen = [seen_blocks(np.eye(8, dtype=bool)[token], [layout])[0].astype(int).tolist() for token in range(8)]
    nothing = [[[0, 0, 0, 0], [0, 0, 0, 0]]]
    assert seen == [
        [[[1, 1, 1, 1], [1, 1, 1, 1]]],
        [[[1, 0, 0, 0], [0, 0, 0, 0]]],
        [[[0, 1, 0, 0], [0, 0, 0, 0]]],
        nothing,  # the end of a line
        [[[0, 0, 0, 0], [1, 0, 0, 0]]],
        [[[0, 0, 0, 0], [0, 1, 0, 0]]],
        nothing,
        [[[0, 0, 1, 1], [0, 0, 1, 1]]],
    ]


def test_the_two_parts_are_the_picture_and_leave_text_alone(tiny_model: Path, tmp_path: Path) -> None:
    """A picture of 3 × 2 visual tokens of 28 pixels, and a film of two views of 2 × 1; one token of each is kept."""
    store, family = MediaStore(tmp_path), load_family(tiny_model)
    picture = store.put(Image.effect_noise((84, 56), 60).convert("RGB").point(lambda value: max(1, value)))
    frames = np.random.default_rng(0).integers(1, 256, (4, 28, 56, 3), dtype=np.uint8)
    film = store.put_frames(frames, 2, VideoSampling(2.0, 4, 4))
    assert [family.tokens(medium) for medium in (picture, film)] == [6, 4]
    prompts = [Prompt("a", "k", "what ?", "7", (picture, film), (1,)), Prompt("text", "k", "what ?", "7", (), (1,))]
    visual = np.array([0, 0, 0, 0, 0.4, 0, 0, 0, 0, 0.3])
    found = attended_parts(prompts, {"a": visual}, 0.2, family)
    assert list(found) == ["only attended", "without attended", "only random", "without random"]
    assert all(text == prompts[1] and (a.id, a.token_ids) == ("a", (1,)) for a, text in found.values())
    for name, kept in (("only attended", True), ("without attended", False)):
        part = found[name][0]
        shown, played = (store.frames(medium) for medium in part.media)
        inside = np.zeros((56, 84), bool)
        inside[28:, 28:56] = True
        assert np.array_equal(shown[0], np.where((inside == kept)[..., None], store.frames(picture)[0], 0))
        seen = np.zeros((4, 28, 56), bool)
        seen[2:, :, 28:] = True
        assert np.array_equal(played, np.where((seen == kept)[..., None], store.frames(film), 0))


def test_the_control_keeps_as_many_tokens_and_is_the_same_for_every_model(tiny_model: Path, tmp_path: Path) -> None:
    store, family = MediaStore(tmp_path), load_family(tiny_model)
    picture = store.put(Image.new("RGB", (112, 112), "white"))
    prompts = [Prompt(id, "k", "what ?", "7", (picture,), (1,)) for id in ("a", "b")]
    one, other = (
        attended_parts(prompts, dict.fromkeys("ab", visual), 0.25, family)
        for visual in (np.arange(16.0), -np.arange(16.0))
    )
    assert one["only random"] == other["only random"] and one["only attended"] != other["only attended"]
    shown = [store.frames(prompt.media[0])[0, ::28, ::28, 0] > 0 for prompt in one["only random"]]
    assert [int(of.sum()) for of in shown] == [4, 4] and not np.array_equal(*shown)
    rest = [store.frames(prompt.media[0])[0, ::28, ::28, 0] > 0 for prompt in one["without random"]]
    assert all(np.array_equal(of, ~others) for of, others in zip(shown, rest, strict=True))
