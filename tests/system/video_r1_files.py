"""A folder as people have them: Video-R1's JSON with pictures and videos, text alone, and rows that cannot be used."""

import json
from pathlib import Path

import numpy as np

from ral_system.tasks.visual_search import VisualSearch
from tests.unit.media.clips import clip

BAD = 4


def write_video_r1(folder: Path, rows: int = 40) -> Path:
    """`rows` usable ones in turn about a picture, a video and nothing, and `BAD` others between them; the JSON file."""
    board = VisualSearch(seed=5, grid=3, objects=5)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(rows):
        record = board.record("train", i)
        row = {
            "problem_id": i,
            "problem": record.question,
            "data_type": "text",
            "problem_type": record.kind,
            "solution": f"<answer>{record.answer}</answer>",
            "process": f"<think>{record.thought}</think>",
            "path": "",
        }
        if i % 3 == 0:
            row |= {"path": f"{i}.png", "data_type": "image"}
            record.image.save(folder / f"{i}.png")
        elif i % 3 == 1:
            frames = [np.asarray(board.record("train", i + 100 * n).image) for n in range(2 + 2 * (i % 2))]
            (folder / f"{i}.mkv").write_bytes(clip(frames, fps=0.5))
            row |= {"path": f"{i}.mkv", "data_type": "video"}
        found.append(row)
    whole = (folder / "0.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    found.insert(3, found[0] | {"path": "half.png"})
    found.insert(5, found[1] | {"path": "../elsewhere.png"})
    found.insert(8, found[2] | {"problem": "what is <|image_pad|> ?"})
    found.append(found[0] | {"problem_id": "again"})
    path = folder / "rows.json"
    path.write_text(json.dumps(found))
    return path


def overrides(path: Path) -> tuple[str, ...]:
    """Return the overrides of a command that trains the tiny model on them."""
    return (
        "data=video_r1",
        f"data.sources.main.path={path}",
        "data.system_prompt=answer",
        "data.instructions={}",
        "data.held_out=0.3",
        "data.image={min_pixels: null, max_pixels: null}",
        "data.video={fps: 1.0, max_frames: 4, min_frames: 2, min_pixels: 3136, max_pixels: 7056}",
        "data.max_broken=0.2",
        "data.workers=1",
    )
