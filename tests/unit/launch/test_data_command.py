"""`ral-data` on real files, with the tiny model: what it prints, writes and refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from ral_system.config.commands import DataCommandConfig
from ral_system.errors import ConfigError, DataError, SetupError
from ral_system.launch.data import show_data
from ral_system.models.folders import local_model_folder
from ral_system.models.loading import load_family
from ral_system.runs.folder import RunFolder
from ral_system.tasks.open import QuestionSettings, prepare_files, prepared_folder
from ral_system.tasks.start_model import new_tiny_model
from ral_system.tasks.tiny_model import build_tokenizer
from ral_system.tasks.visual_search import VisualSearch, words
from tests.unit.media.clips import clip, noise

BOARD = VisualSearch(seed=0, grid=3, objects=5, digits=True)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Bench:
    """Files in a folder, and the command for them with the tiny model."""

    def __init__(self, folder: Path, model: Path, make_config: Callable[..., DataCommandConfig]) -> None:
        self.folder, self.model, self._make_config = folder, model, make_config

    def pictures(self, count: int) -> list[dict[str, Any]]:
        found = []
        for i in range(count):
            record = BOARD.record("train", i)
            (self.folder / f"{i}.png").write_bytes(png(record.image))
            answer, thought = f"<answer>{record.answer}</answer>", f"<think>{record.thought}</think>"
            row = {"problem_id": 100 + i, "problem": record.question, "solution": answer, "process": thought}
            found.append(row | {"data_type": "image", "problem_type": record.kind, "path": f"{i}.png"})
        return found

    def video(self) -> dict[str, Any]:
        (self.folder / "clip.mkv").write_bytes(clip(noise(1, 40, 56, 84)))
        row = {"problem_id": "v", "problem": "what is in <video> ?", "solution": "red", "process": "a1 red circle"}
        return row | {"data_type": "video", "problem_type": "free-form", "path": "clip.mkv"}

    def config(self, rows: list[dict[str, Any]], *overrides: str) -> DataCommandConfig:
        (self.folder / "rows.json").write_text(json.dumps(rows))
        return self._make_config(
            "data=video_r1",
            "stages=[sft,rl]",
            "name=look",
            f"runs_dir={self.folder / 'runs'}",
            f"model.path={self.model}",
            "data.system_prompt=what",
            "data.image={min_pixels: null, max_pixels: null}",
            "data.video.min_pixels=1",
            "data.instructions={}",
            f"data.sources.main.path={self.folder / 'rows.json'}",
            "data.workers=1",
            *overrides,
            kind=DataCommandConfig,
        )

    def page(self) -> str:
        return (self.folder / "runs" / "look" / "preview.html").read_text()


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path, make_config: Callable[..., DataCommandConfig]) -> Bench:
    return Bench(tmp_path, tiny_model, make_config)


def article(page: str, id: str) -> str:
    found = re.search(rf'<article data-row="{id}">.*?</article>', page, re.DOTALL)
    assert found, id
    return found[0]


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_the_page_shows_what_the_model_reads(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*bench.pictures(8), bench.video()]
    rows[3]["path"] = "nowhere.png"
    rows[5] = {**rows[4], "problem_id": 5}
    config = bench.config(rows, "data.held_out=0.3", "data.seed=1", "data.max_broken=0.5")
    show_data(config)
    page = bench.page()
    ids = re.findall(r'<article data-row="([^"]*)">', page)
    assert sorted(ids) == [f"main/{i}" for i in (0, 1, 2, 4, 6, 7, 8)]
    picture = text_of(article(page, "main/4"))
    question, record = rows[4]["problem"], BOARD.record("train", 4)
    assert "84 × 84 px · 1 × 3 × 3 = 9 visual tokens" in picture
    prompt = f"user &lt;|vision_start|&gt; &lt;|image_pad|&gt; × 9 &lt;|vision_end|&gt; {question} &lt;|im_end|&gt;"
    assert f"&lt;|im_start|&gt; system what &lt;|im_end|&gt; &lt;|im_start|&gt; {prompt}" in picture
    assert picture.endswith(f"Answer {record.answer} Thought {record.thought}")
    video = text_of(article(page, "main/8"))
    assert "40 frames of 40.0 s · 84 × 56 px · 20 × 2 × 3 = 120 visual tokens" in video
    assert "0.0 s 3.0 s 5.0 s" in video and "39.0 s 16 of the 40 frames are shown" in video
    assert "what is in &lt;|vision_start|&gt; &lt;|video_pad|&gt; × 120 &lt;|vision_end|&gt; ?" in video
    left = text_of(page.split('id="left-out"')[1])
    assert "main/3 103 broken path: nowhere.png" in left and "main/5" in left and "duplicate" in left
    out = capsys.readouterr().out
    for name, count in (("rows", 9), ("left out: broken", 1), ("left out: duplicate", 1)):
        assert re.search(rf"{name} +│ +{count} ", out), out
    lines = [line.strip(" │┃").split("  ")[0] for line in out.splitlines()]
    broken = lines.index("left out: broken")
    assert lines[broken + 1].startswith("path: … no such file"), lines
    assert re.search(r"visual tokens per prompt: median / 95 % / max +│ +9 / 120 / 120 ", out)
    assert f"{bench.folder}/runs/look/preview.html" in out


def test_a_run_finds_what_it_prepared_and_the_folder_is_free(bench: Bench) -> None:
    config = bench.config(bench.pictures(8), "data.held_out=0.3", "data.seed=1")
    show_data(config)
    assert [path.name for path in (bench.folder / "runs" / "look").iterdir()] == ["preview.html"]
    (done,) = (bench.folder / "runs" / ".prepared").glob("*/prepared.json")
    prepared = done.parent
    before = (prepared / "prepared.json").stat().st_mtime_ns
    assert config.data.name == "files"
    settings = QuestionSettings.of(config)
    assert prepare_files(settings, config.data, load_family(bench.model), bench.folder / "runs") == prepared
    assert (prepared / "prepared.json").stat().st_mtime_ns == before


def test_too_many_broken_rows_are_shown_and_refused(bench: Bench) -> None:
    rows = bench.pictures(6)
    for row in rows[2:]:
        row["solution"] = None
    with pytest.raises(DataError, match="4 of 6 rows cannot be used"):
        show_data(bench.config(rows))
    page = bench.page()
    assert "No run can use these data yet." in page and "4 of 6 rows cannot be used" in page
    assert len(re.findall("data-left=", page)) == 4 and "solution: not an answer but None" in page
    assert len(re.findall("<article", page)) == 2


def test_rows_without_a_held_out_one_are_shown_and_warned_of(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    show_data(bench.config(bench.pictures(4), "data.held_out=0"))
    assert len(re.findall("<article", bench.page())) == 4
    assert "warning: data.held_out=0 keeps none of 4 questions for evaluation; " in capsys.readouterr().err
    assert "No run can use these data yet." in bench.page()


def test_what_is_seldom_looked_at_is_listed(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench.pictures(12)
    for row in rows[:4]:
        row["path"] = f"none{row['problem_id']}.png"
    for row in rows[4:8]:
        row |= {"problem_type": " Multiple Choice", "solution": "B", "problem": f"{row['problem']} {row['problem_id']}"}
    (bench.folder / "more.json").write_text(json.dumps(rows[8:10]))
    more = ("+data/source@data.sources.more=video_r1", f"data.sources.more.path={bench.folder / 'more.json'}")
    given = ("reward=video_r1", "data.max_broken=1", "data.held_out=0.3", "stages=[rl]")
    config = bench.config([*rows[:8], *rows[10:]], *more, *given, "data.sources.more.weight=3")
    show_data(config)
    out = capsys.readouterr().out
    for line in (
        r"  path: … no such file below … +│ +4 ",
        r"for example: path: none100.png: no such file",
        r"multiple choice → multiple_choice +│ +4 ",
        r" → exact \(reward\.verifier\) +│ +\d ",
        r"source more: questions, share of draws +│ +2, \d",
        r"data\.sources\.more\.columns\.options=options +│ +not in any row",
    ):
        assert re.search(line, out), (line, out)
    page = text_of(bench.page())
    assert "4 × path: … no such file below …; for example: path: none100.png: no such file" in page
    assert "multiple choice → multiple_choice , 4 questions" in page


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rows.csv", r"rows.csv: .csv is not one of .*; save it as JSON lines or parquet"),
        ("saved", r"saved: holds splits test, train; choose with data.sources.main.files=train/data-\*.arrow"),
        ("clips", r"clips: holds videos and no rows; write rows.jsonl there with problem, solution, .*path, for"),
    ],
)
def test_files_of_no_rows_are_named_before_anything_is_prepared(bench: Bench, name: str, says: str) -> None:
    for file in (
        "rows.csv",
        "saved/train/data-00000-of-00001.arrow",
        "saved/test/data-00000-of-00001.arrow",
        "clips/a.mp4",
    ):
        (bench.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (bench.folder / file).touch()
    with pytest.raises(DataError, match=f"^data.sources.main.path: {bench.folder}/{says}"):
        show_data(bench.config([], f"data.sources.main.path={bench.folder / name}"))
    assert not (bench.folder / "runs").exists()


COLUMNS = "data.sources.main.columns"


@pytest.mark.parametrize(
    ("columns", "asked", "then"),
    [
        ("", "problem, solution, data_type (image or video), path, for sft process", ""),
        ("media_type: null, images: null, videos: path, thought: null", "problem, solution, path", ""),
        ("media_type: null, images: path, videos: path, thought: null", "problem, solution, path", ""),
        (
            "media_type: null, images: null, thought: null",
            f"problem, solution, a column of paths, named as {COLUMNS}.videos",
            "videos: path",
        ),
    ],
)
def test_rows_that_are_written_as_the_message_says_are_used(bench: Bench, columns: str, asked: str, then: str) -> None:
    row, clips = bench.video(), bench.folder / "clips"
    clips.mkdir()
    (bench.folder / "clip.mkv").rename(clips / "clip.mkv")
    stages = "stages=[sft,rl]" if "sft" in asked else "stages=[rl]"
    given = (stages, "data.max_broken=0", f"{COLUMNS}={{{columns}}}")
    asks = f"data.sources.main.path: {clips}: holds videos and no rows; write rows.jsonl there with {asked}, and set "
    with pytest.raises(DataError, match=f"^{re.escape(asks)}data.sources.main.path to it$"):
        show_data(bench.config([], *given, f"data.sources.main.path={clips}"))
    written = {name: value for name, value in row.items() if name in re.findall(r"\w+", f"{asked} {then}")}
    (clips / "rows.jsonl").write_text(json.dumps(written))
    show_data(bench.config([], *given, f"{COLUMNS}={{{then}}}", f"data.sources.main.path={clips}/rows.jsonl"))
    assert "40 frames of 40.0 s" in text_of(article(bench.page(), "main/0"))


def test_files_that_are_not_there_leave_no_page(bench: Bench) -> None:
    config = bench.config([], f"data.sources.main.path={bench.folder}/none.json")
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        show_data(config)
    assert not (bench.folder / "runs" / "look" / "preview.html").exists()


def test_generated_questions_need_no_model(make_config: Callable[..., DataCommandConfig], tmp_path: Path) -> None:
    show_data(
        make_config(
            "name=look",
            f"runs_dir={tmp_path}",
            "data.train_records=5000",
            "evaluation.questions=3",
            kind=DataCommandConfig,
        )
    )
    page = (tmp_path / "look" / "preview.html").read_text()
    assert len(re.findall('<article data-row="train/', page)) == 24
    assert len(re.findall('<article data-row="held_out/', page)) == 3
    first = VisualSearch(seed=0, grid=3, objects=9, digits=True).record("train", 0)
    assert text_of(article(page, "train/0")).endswith(f"Answer {first.answer} Thought {first.thought}")
    assert "The first 24 of 5,000" in page and "a tiny model" in page
    assert [path.name for path in (tmp_path / "look").iterdir()] == ["preview.html"]


def test_files_need_a_model_and_a_folder_to_write_to(bench: Bench) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.path=null: no model for stages=\['rl'\]; set .* or stages=\[sft,rl\]"
    ):
        show_data(bench.config([], "model.path=null", "stages=[rl]"))
    (bench.folder / "file").touch()
    with pytest.raises(SetupError, match="cannot be written"):
        show_data(bench.config([], f"runs_dir={bench.folder}/file"))


@pytest.mark.parametrize("given", [False, True])
def test_files_are_prepared_for_the_tiny_model_that_a_run_builds(bench: Bench, given: bool) -> None:
    tokenizer = bench.folder / "tokenizer"
    build_tokenizer(words()).save_pretrained(tokenizer)
    rows = [row | {"problem": f"{row['problem']} 這是"} for row in bench.pictures(6)]
    own = ("model.path=null", "data.held_out=0.5", *([f"model.tiny.tokenizer={tokenizer}"] if given else []))
    config = bench.config(rows, *own)
    show_data(config)
    assert "as read by a tiny model" in bench.page() and ("<unk>" in unescape(bench.page())) == given
    (prepared,) = (path for path in (bench.folder / "runs" / ".prepared").iterdir() if path.name != "media")
    start = new_tiny_model(config.model.tiny, config.data, config.seed, RunFolder(bench.folder / "runs" / "run"))
    settings = QuestionSettings.of(config)
    assert prepared_folder(settings, config.data, load_family(start), bench.folder / "runs") == prepared


def test_words_that_the_model_does_not_know_are_a_warning(
    make_config: Callable[..., DataCommandConfig], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("name=look", f"runs_dir={tmp_path}", f"start_model={tiny_model}", "evaluation.questions=3")
    show_data(make_config(*given, kind=DataCommandConfig))
    assert "<unk>" not in capsys.readouterr().err
    show_data(
        make_config(*given, "data.system_prompt=Kindly ponder at length before answering", kind=DataCommandConfig)
    )
    says = r"\d+ of the \d+ text tokens of train/\d+ are <unk>: the model's tokenizer does not know these words; change"
    assert re.search(f"^warning: {says}", capsys.readouterr().err)
    assert re.search(says, unescape(text_of((tmp_path / "look" / "preview.html").read_text())))


def test_a_hub_models_weights_are_not_downloaded(
    make_config: Callable[..., DataCommandConfig], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fake(name: str, allow_patterns: list[str] | None = None) -> str:
        asked.append((name, allow_patterns))
        folder = tmp_path / "hub"
        for file in filter_repo_objects([path.name for path in tiny_model.iterdir()], allow_patterns=allow_patterns):
            folder.mkdir(exist_ok=True)
            shutil.copy(tiny_model / file, folder)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    monkeypatch.chdir(tmp_path)
    show_data(
        make_config(
            "name=look",
            f"runs_dir={tmp_path}",
            "start_model=org/model",
            "evaluation.questions=3",
            kind=DataCommandConfig,
        )
    )
    assert "as read by org/model" in (tmp_path / "look" / "preview.html").read_text()
    assert [name for name, _ in asked] == ["org/model"]
    assert (tmp_path / "hub" / "config.json").is_file()
    assert not [path for path in (tmp_path / "hub").iterdir() if "safetensors" in path.name]
    local_model_folder("start_model", "org/model")
    assert (tmp_path / "hub" / "model.safetensors").is_file()


SOURCE = "data=files +data/source@data.sources.mine=columns"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("--help", 0, "ral-data: prepare"),
        ("data.nope=1", 2, "data.nope: unknown key"),
        ("preview", 2, "override 'preview' cannot be read"),
        ("show", 2, "override 'show' cannot be read"),
        (SOURCE, 2, "data.sources.mine.path=???: must be given; add it"),
        (
            f"{SOURCE} data.sources.mine.path=rows.json",
            2,
            "data.sources.mine.columns.question=???: must be given; add it",
        ),
    ],
)
def test_the_command_line_is_read_without_torch(tmp_path: Path, arguments: str, code: int, says: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ral_system.launch.data", *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == code and says in done.stdout + "".join(told)
    assert len(told) <= 1 and "torch" not in imported and "ral_system.config.commands" in imported
