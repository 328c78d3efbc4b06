"""Questions as a model is asked them that cannot see, or sees the pictures of other questions.

A model that answers them as well does not look. Prompts keep their tokens, since media keep their size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice

import numpy as np
from PIL import Image

from ral_system.evaluation.greedy import Evaluation
from ral_system.media.store import MediaStore
from ral_system.types import Clip, Media, Prompt, VideoSampling

_SIDE_PX = 28
"""Side of the stored black pictures, which are read in the size of those that they stand for."""


def blind_gap(seen: Evaluation, evaluate: Callable[[list[Prompt]], Evaluation], store: MediaStore) -> dict[str, float]:
    """Ask the questions that have pictures again with black ones: accuracy then, and how much pictures add to it.

    Nothing without such a question.
    """
    own = Evaluation(tuple(rollout for rollout in seen.rollouts if rollout.prompt.media))
    if not own.rollouts:
        return {}
    black = evaluate(blackened([rollout.prompt for rollout in own.rollouts], store)).accuracy
    return {"eval/accuracy_black": black, "eval/blind_gap": own.accuracy - black}


def blackened(prompts: Sequence[Prompt], store: MediaStore) -> list[Prompt]:
    """The prompts with every picture black, and every frame of every video."""
    return [replace(p, media=tuple(_black(medium, store) for medium in p.media)) for p in prompts]


def exchanged(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with media of other prompts instead of their own; without those for which there are none.

    Each medium is taken from the next prompts, in a circle, that have one of its kind which is not the prompt's own,
    and is read in the size of the one that it replaces. For a video it must have as many frames. No medium is taken
    twice for a prompt.
    """
    found = []
    for at, prompt in enumerate(prompts):
        used = {each.digest for each in prompt.media}
        media = []
        for medium in prompt.media:
            others = (m for p in chain(islice(prompts, at + 1, None), islice(prompts, at)) for m in p.media)
            fitting = (m for m in others if m.digest not in used and (m.kind, m.frames) == (medium.kind, medium.frames))
            if (other := next(fitting, None)) is None:
                break
            used.add(other.digest)
            media.append(replace(other, width_px=medium.width_px, height_px=medium.height_px))
        else:
            found.append(replace(prompt, media=tuple(media)))
    return found


def _black(medium: Media, store: MediaStore) -> Media:
    if medium.clip is None:
        stored = store.put(Image.new("RGB", (_SIDE_PX, _SIDE_PX)))
        return replace(medium, digest=stored.digest)
    frames, clip = medium.frames, medium.clip
    sampling = VideoSampling(1.0, max_frames=frames, min_frames=frames, step=clip.sampling.step)
    stored = store.put_frames(np.zeros((frames, _SIDE_PX, _SIDE_PX, 3), np.uint8), 1, sampling)
    return replace(medium, digest=stored.digest, clip=Clip(sampling, clip.times_s, clip.duration_s))
