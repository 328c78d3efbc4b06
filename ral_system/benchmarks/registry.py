"""The benchmarks by name, and their items with the checks that all of them share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ral_system.benchmarks import (
    blink,
    chartqa,
    cvbench,
    longvideobench,
    lvbench,
    mme,
    mmmu_pro,
    muirbench,
    mvbench,
    nextqa,
    tempcompass,
    video_mme,
    video_mmmu,
    vizwiz,
    vstar,
)
from ral_system.benchmarks.item import BadItem, Benchmark, Item
from ral_system.errors import DataError


@dataclass(frozen=True, slots=True)
class Entry:
    """A benchmark, with what users need to know about it."""

    benchmark: Benchmark
    about: str
    files: str
    """Contents of its folder."""
    videos: bool = False
    """Whether its media are videos."""


BENCHMARKS: Mapping[str, Entry] = {
    "vstar": Entry(vstar, "small things in large pictures", "test_questions.jsonl and its folders of pictures"),
    "mme": Entry(mme, "yes or no in 14 categories", "a folder for each category, or MME_Benchmark with these"),
    "chartqa": Entry(chartqa, "questions about charts", "test/test_human.json, test/test_augmented.json, test/png/"),
    "mmmu_pro": Entry(
        mmmu_pro, "expert questions, ten options", "standard (10 options)/test-*.parquet, vision/test-*.parquet"
    ),
    "muirbench": Entry(muirbench, "several pictures a question", "data/test-*.parquet"),
    "vizwiz": Entry(vizwiz, "photographs of blind people", "Annotations/val.json, val/"),
    "blink": Entry(blink, "14 tasks of perception", "<task>/val-*.parquet for each task"),
    "cvbench": Entry(cvbench, "space in 2D and 3D", "test_2d.parquet, test_3d.parquet"),
    "longvideobench": Entry(longvideobench, "referring to long videos", "lvb_val.json, videos/", videos=True),
    "nextqa": Entry(
        nextqa, "why, how and when in short videos", "test.csv, map_vid_vidorID.json, NExTVideo/", videos=True
    ),
    "video_mme": Entry(
        video_mme, "short, medium and long videos", "videomme/test-*.parquet, data/<video>.mp4", videos=True
    ),
    "video_mmmu": Entry(
        video_mmmu, "learning from lectures", "<track>/test-*.parquet, <discipline>/<id>.mp4", videos=True
    ),
    "lvbench": Entry(lvbench, "videos of an hour and more", "video_info.meta.jsonl, all_videos/", videos=True),
    "mvbench": Entry(mvbench, "20 tasks in time", "json/<task>.json for each task, video/", videos=True),
    "tempcompass": Entry(
        tempcompass,
        "action, direction, speed, order, change",
        "questions/multi-choice.json, questions/yes_no.json, questions/caption_matching.json, videos/",
        videos=True,
    ),
}


def entry(name: str) -> Entry:
    """Return the benchmark of this name. Raises DataError that lists the names."""
    if name not in BENCHMARKS:
        raise DataError(f"unknown benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def read_items(name: str, folder: Path) -> Iterator[Item | BadItem]:
    """The benchmark's questions; one whose id came before is a bad item.

    Raises DataError for files that are missing, which names the field and says what the folder should hold.
    """
    found = entry(name)
    seen: set[str] = set()
    try:
        for item in found.benchmark.items(folder):
            if isinstance(item, Item) and item.id in seen:
                yield BadItem(item.id, "another question has this id")
                continue
            seen.add(item.id)
            yield item
    except DataError as error:
        where = f"evaluation.benchmark.folder={folder}"
        raise DataError(f"{where}: {error}; the folder of {name} holds {found.files}") from None
