"""Questions without their pictures: as long as before, and with nothing of their own left to see."""

from pathlib import Path

import numpy as np
from PIL import Image

from ral_system.evaluation.blind import blackened, blind_gap, exchanged
from ral_system.evaluation.greedy import Evaluation
from ral_system.media.store import MediaStore
from ral_system.types import Completion, FinishReason, Media, Prompt, RewardResult, RewardStatus, Rollout, VideoSampling


def noise(store: MediaStore, seed: int, width: int = 84, height: int = 56) -> Media:
    return store.put(Image.effect_noise((width, height), 60 + seed).convert("RGB"))


def video(store: MediaStore, seed: int, count: int = 8) -> Media:
    frames = np.random.default_rng(seed).integers(1, 256, (count, 56, 56, 3), dtype=np.uint8)
    return store.put_frames(frames, 2, VideoSampling(1.0, 128, 2))


def prompt(id: str, *media: Media) -> Prompt:
    return Prompt(id, "k", "what ?", "7", media, (1, 2, 3))


def test_black_media_have_the_size_and_times_of_those_they_stand_for(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    given = [prompt("a", noise(store, 0), video(store, 0)), prompt("b", noise(store, 1, 30, 131)), prompt("c")]
    found = blackened(given, store)
    assert [p.id for p in found] == ["a", "b", "c"] and found[2] == given[2]
    for before, after in zip(given, found, strict=True):
        for own, black in zip(before.media, after.media, strict=True):
            frames = store.frames(black)
            assert not frames.any() and frames.shape == store.frames(own).shape and store.frames(own).any()
            assert (own.width_px, own.height_px, own.frames) == (black.width_px, black.height_px, black.frames)
            if own.clip is not None and black.clip is not None:
                assert (own.clip.times_s, own.clip.duration_s) == (black.clip.times_s, black.clip.duration_s)


def test_exchanged_media_are_those_of_the_next_question_in_the_size_of_its_own(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    a, b, film, other = noise(store, 0), noise(store, 1, 30, 131), video(store, 0), video(store, 1)
    found = exchanged([prompt("a", a), prompt("again", a), prompt("b", b), prompt("f", film), prompt("g", other, a)])
    assert [(p.id, [m.digest for m in p.media]) for p in found] == [
        ("a", [b.digest]),
        ("again", [b.digest]),
        ("b", [a.digest]),
        ("f", [other.digest]),
        ("g", [film.digest, b.digest]),
    ]
    assert store.frames(found[0].media[0]).shape == store.frames(a).shape
    assert (found[2].media[0].width_px, found[2].media[0].height_px) == (30, 131)


def test_a_question_without_a_partner_is_left_out_and_one_without_media_stays(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    alone, short, long = noise(store, 0), video(store, 0), video(store, 1, 32)
    given = [prompt("a", alone), prompt("b", alone), prompt("s", short), prompt("l", long), prompt("text")]
    assert exchanged(given) == [given[-1]]


def answered(prompts: list[Prompt], right: list[float]) -> Evaluation:
    """Greedy answers to these prompts, right or wrong."""
    return Evaluation(
        tuple(
            Rollout(
                p,
                Completion(p.id, 0, (1,), (0.0,), "", FinishReason.STOP, 0),
                RewardResult(p.id, {"correctness": r}, r, RewardStatus.OK),
                0.0,
            )
            for p, r in zip(prompts, right, strict=True)
        )
    )


def test_what_pictures_add_is_of_the_questions_that_have_some(tmp_path: Path) -> None:
    """Three of four seen questions are right, and one of them blind; the question without a picture stays out."""
    store = MediaStore(tmp_path)
    prompts = [*(prompt(str(i), noise(store, i)) for i in range(4)), prompt("text")]
    asked: list[Prompt] = []

    def blind(given: list[Prompt]) -> Evaluation:
        asked.extend(given)
        return answered(given, [1.0, 0.0, 0.0, 0.0])

    found = blind_gap(answered(prompts, [1.0, 1.0, 1.0, 0.0, 0.0]), blind, store)
    assert found == {"eval/accuracy_black": 0.25, "eval/blind_gap": 0.5}
    assert [p.id for p in asked] == ["0", "1", "2", "3"] and not any(store.frames(p.media[0]).any() for p in asked)
    assert blind_gap(answered(prompts[4:], [1.0]), blind, store) == {}
