"""Files become questions: what is kept, what is left out and why, and nothing is lost on the way."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from ral_system.config.commands import TrainConfig
from ral_system.data.chat import ChatRenderer
from ral_system.data.file_prompts import FilePrompts
from ral_system.data.preparation import PreparedQuestion, kind_of_reason, read_prepared
from ral_system.errors import ConfigError, DataError, SetupError
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.observability.jsonl import read_objects
from ral_system.tasks.open import QuestionSettings, absent_columns, prepare_files
from ral_system.tasks.visual_search import VisualSearch

BOARD = VisualSearch(seed=0, grid=3, objects=5, digits=True)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def rows(folder: Path, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Questions about pictures in files."""
    (folder / "pictures").mkdir(exist_ok=True)
    found = []
    for i in range(first, first + count):
        record = BOARD.record("train", i)
        (folder / "pictures" / f"{i}.png").write_bytes(png(record.image))
        found.append(
            {
                "problem_id": 100 + i,
                "problem": record.question,
                "data_type": "image",
                "problem_type": record.kind,
                "solution": f"<answer>{record.answer}</answer>",
                "path": f"pictures/{i}.png",
                "process": f"<think>{record.thought}</think>",
            }
        )
    return found


class Bench:
    """Files in a folder, and their preparation for the tiny model."""

    def __init__(self, folder: Path, model: Path, make_config: Callable[..., TrainConfig]) -> None:
        self.folder, self.family, self._make_config = folder, load_family(model), make_config
        self.config: TrainConfig

    def write(self, found: list[Any], name: str = "rows.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        return path

    def prepare(self, *overrides: str) -> Path:
        self.config = self._make_config(
            "data=video_r1",
            "stages=[rl]",
            "data.system_prompt=answer",
            "data.image={min_pixels: null, max_pixels: null}",
            "data.instructions={}",
            f"data.sources.main.path={self.folder / 'rows.jsonl'}",
            "data.max_broken=1",
            "data.workers=1",
            *overrides,
        )
        assert self.config.data.name == "files"
        return prepare_files(QuestionSettings.of(self.config), self.config.data, self.family, self.folder / "runs")

    def prompts(self, prepared: Path) -> FilePrompts:
        assert self.config.data.name == "files"
        renderer = ChatRenderer(self.family, self.config.data.system_prompt)
        return FilePrompts(self.config.data, prepared, renderer, response_format="think_answer")


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path, make_config: Callable[..., TrainConfig]) -> Bench:
    return Bench(tmp_path, tiny_model, make_config)


def left_out(prepared: Path) -> dict[str, tuple[str, str]]:
    return {line["id"]: (line["cause"], line["reason"]) for line in read_objects(prepared / "quarantine.jsonl")}


def test_rows_become_prompts_with_their_pictures(bench: Bench) -> None:
    given = rows(bench.folder, 20)
    bench.write(given)
    prepared = bench.prepare("data.held_out=0.3", "stages=[sft,rl]")
    kept = {row.id: row for row in read_prepared(prepared)}
    assert list(kept) == [f"main/{i}" for i in range(20)] and not left_out(prepared)
    store, prompts = MediaStore(prepared / "media"), bench.prompts(prepared)
    held_out = prompts.held_out(100)
    assert 0 < len(held_out) < 20
    train = [prompts.question("train", i) for i in range(20 - len(held_out))]
    assert sorted(p.id for p in (*held_out, *train)) == sorted(kept)
    for prompt in train:
        record = BOARD.record("train", int(prompt.id.removeprefix("main/")))
        assert (prompt.question, prompt.answer, prompt.kind) == (record.question, record.answer, record.kind)
        assert store.open(prompt.media[0]).tobytes() == record.image.tobytes()
        assert len(prompt.token_ids) == kept[prompt.id].tokens
        assert prompt.token_ids.count(bench.family.visual_ids["image"]) == 9
    again = prompts.question("train", len(train))
    assert again.id.endswith("@1") and again.id.removesuffix("@1") in {p.id for p in train}
    sample = prompts.demonstration("sft", "train", 3)
    record = BOARD.record("train", int(sample.prompt.id.removeprefix("main/")))
    text = bench.family.tokenizer.decode(sample.response_token_ids[:-1])
    assert text.split() == f"<think> {record.thought} </think> <answer> {record.answer} </answer>".split()
    assert prompts.demonstration("sft", "train", 0, seed=2) == prompts.demonstration("sft", "train", 2 * len(train))


def test_what_is_held_out_depends_on_content_and_seed_alone(bench: Bench) -> None:
    given = rows(bench.folder, 30)
    bench.write(given)

    def held_out(*overrides: str) -> set[str]:
        return {r.question + r.media[0].digest for r in read_prepared(bench.prepare(*overrides)) if r.split != "train"}

    first = held_out("data.held_out=0.4")
    assert 3 <= len(first) <= 20
    assert first < held_out("data.held_out=0.8")
    assert held_out("data.held_out=0.4", "data.seed=1") != first
    bench.write(given[::-1])
    assert held_out("data.held_out=0.4") == first


def test_a_source_can_be_for_one_purpose(bench: Bench) -> None:
    bench.write(rows(bench.folder, 5))
    bench.write(rows(bench.folder, 5, first=5), "other.jsonl")
    prepared = bench.prepare(
        "+data/source@data.sources.other=video_r1",
        f"data.sources.other.path={bench.folder / 'other.jsonl'}",
        "data.sources.main.split=train",
        "data.sources.other.split=held_out",
    )
    assert {(r.id.split("/")[0], r.split) for r in read_prepared(prepared)} == {
        ("main", "train"),
        ("other", "held_out"),
    }


def test_duplicates_and_long_ones_are_left_out_and_are_not_broken(bench: Bench) -> None:
    given = rows(bench.folder, 4)
    (bench.folder / "pictures" / "large.png").write_bytes(png(Image.new("RGB", (900, 900))))
    (bench.folder / "pictures" / "copy.png").write_bytes((bench.folder / "pictures" / "0.png").read_bytes())
    given += [given[1], {**given[0], "path": "pictures/copy.png", "solution": "red"}]
    given += [{**given[2], "path": "pictures/large.png"}]
    bench.write(given)
    prepared = bench.prepare("data.max_broken=0")
    found = left_out(prepared)
    assert found["main/4"] == ("duplicate", "the same as main/1")
    assert found["main/5"] == ("duplicate", "the same as main/0, but for its answer 'red'")
    cause, reason = found["main/6"]
    assert cause == "too_long" and reason.endswith("leave room for a response") and "1,0" in reason
    summary = json.loads((prepared / "prepared.json").read_text())
    assert summary == {
        "rows": 7,
        "used": {"train": 4},
        "left_out": {"duplicate": 2, "too_long": 1},
        "reasons": {},
        "absent": ["data.sources.main.columns.options=options"],
    }


def test_answers_that_their_verifier_cannot_use_are_broken(bench: Bench) -> None:
    given = rows(bench.folder, 3)
    given[0] |= {"problem_type": "numerical", "solution": "a few"}
    given[1] |= {"problem_type": "numerical", "solution": "nan"}
    given[2] |= {"problem_type": "numerical", "solution": "7"}
    bench.write(given)
    found = left_out(bench.prepare("reward=video_r1", "data.sources.main.columns.thought=null"))
    assert set(found) == {"main/0", "main/1"}
    assert found["main/0"][1].startswith("the verifier cannot judge the answer 'a few'")


def test_too_many_broken_rows_end_it_with_the_reason(bench: Bench) -> None:
    given = rows(bench.folder, 12)
    for row in given[:3]:
        row["path"] = "pictures/none.png"
    bench.write(given)
    with pytest.raises(
        DataError,
        match=r"3 of 12 rows cannot be used, more than data.max_broken=0.2; "
        r"most often, in 3 rows: path: pictures/none.png: no such file below /.*\. See /",
    ):
        bench.prepare("data.max_broken=0.2")
    assert len(read_prepared(bench.prepare("data.max_broken=0.25"))) == 9  # goes on with what there is


def test_rows_that_were_mended_after_a_refusal_are_used(bench: Bench) -> None:
    given = rows(bench.folder, 10)
    missing = bench.folder / "pictures" / "3.png"
    whole = missing.read_bytes()
    missing.unlink()
    bench.write(given)
    with pytest.raises(DataError, match="1 of 10 rows cannot be used"):
        bench.prepare("data.max_broken=0")
    missing.write_bytes(whole)
    prepared = bench.prepare("data.max_broken=0")
    assert [row.id for row in read_prepared(prepared)] == [f"main/{i}" for i in range(10)] and not left_out(prepared)


def test_questions_about_the_same_picture_are_on_one_side(bench: Bench) -> None:
    given = [row | {"problem": f"{row['problem']} {n}"} for row in rows(bench.folder, 12) for n in "123"]
    bench.write(given)
    sides: dict[str, set[str]] = {}
    for row in read_prepared(bench.prepare("data.held_out=0.5")):
        sides.setdefault(row.media[0].digest, set()).add(row.split)
    assert len(sides) == 12 and all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"train", "held_out"}


def test_an_interrupted_preparation_goes_on(bench: Bench) -> None:
    given = rows(bench.folder, 10)
    given[4]["path"] = "../secret.png"
    given[7] = given[2]
    bench.write(given)
    prepared = bench.prepare()
    whole = {name: (prepared / name).read_text() for name in ("questions.jsonl", "quarantine.jsonl", "prepared.json")}
    for kept_lines, torn in ((0, ""), (3, '{"id": "main/3", "spl'), (6, "")):
        (prepared / "prepared.json").unlink()
        lines = whole["questions.jsonl"].splitlines(keepends=True)[:kept_lines]
        (prepared / "questions.jsonl").write_text("".join(lines) + torn)
        left = whole["quarantine.jsonl"].splitlines(keepends=True)[: kept_lines // 4]
        (prepared / "quarantine.jsonl").write_text("".join(left))
        assert bench.prepare() == prepared
        assert {name: (prepared / name).read_text() for name in whole} == whole


def test_what_decides_over_rows_makes_another_preparation(bench: Bench) -> None:
    path = bench.write(rows(bench.folder, 3))
    prepared = bench.prepare()
    assert bench.prepare("data.workers=2", "algorithm.steps=7", "data.max_broken=0") == prepared
    changes = ["data.system_prompt=look", "data.seed=1", "reward=numeric", "data.timeout_s=5"]
    others = {bench.prepare(change) for change in changes}
    path.write_text(path.read_text() + "\n")
    others.add(bench.prepare())
    others |= {
        bench.prepare("stages=[sft,rl]", f"algorithm={name}") for name in ("ral", "ral_zero")
    }  # what is imitated
    assert len(others | {prepared}) == 8


def test_other_settings_neither_decode_nor_copy_again(bench: Bench) -> None:
    """Pictures in the file and in files beside it."""
    given = rows(bench.folder, 6)
    for row in given[:3]:
        row["path"] = {"bytes": (bench.folder / row["path"]).read_bytes(), "path": None}
    for row in given[3:]:
        row["path"] = {"bytes": None, "path": row["path"]}
    parquet.write_table(pa.Table.from_pylist(given), bench.folder / "rows.parquet")
    path = f"data.sources.main.path={bench.folder / 'rows.parquet'}"

    def shared() -> dict[Path, tuple[int, int]]:
        """Notes, one for each time that something was decoded, and copies."""
        found = [file for file in (bench.folder / "runs" / ".prepared" / "media").rglob("*") if file.is_file()]
        return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in found}

    first = bench.prepare(path)
    before = shared()
    assert sorted(file.suffix for file in before) == [".image"] * 3 + [".json"] * 6
    changes = ("data.system_prompt=look", "data.held_out=0.9", "data.seed=3", "data.timeout_s=7")
    folders = [first, *(bench.prepare(path, change) for change in changes)]
    assert len(set(folders)) == 5 and shared() == before
    for folder in folders:
        kept = read_prepared(folder)
        assert [row.id for row in kept] == [f"main/{i}" for i in range(6)]
        store = MediaStore(folder / "media")
        for i, row in enumerate(kept):
            assert store.open(row.media[0]).tobytes() == BOARD.record("train", i).image.tobytes()
        assert all(file.is_symlink() for file in (folder / "media").glob("*/*"))
    damaged = next(file for file in before if file.suffix == ".image")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    last = bench.prepare(path, "data.seed=4")
    for i, row in enumerate(read_prepared(last)):
        assert MediaStore(first / "media").open(row.media[0]).tobytes() == BOARD.record("train", i).image.tobytes()
    assert [file for file, status in shared().items() if before[file] != status] == [damaged]


def test_missing_files_and_pixels_out_of_bounds_are_named(bench: Bench) -> None:
    with pytest.raises(DataError, match=r"data.sources.main.path=.*rows.jsonl: no such file"):
        bench.prepare()
    bench.write(rows(bench.folder, 1))
    with pytest.raises(ConfigError, match=r"data.image.max_pixels=9999999 is outside .* 3136 to 1003520 pixels"):
        bench.prepare("data.image.max_pixels=9999999")


def test_nothing_to_train_on_or_to_hold_out_is_an_error(bench: Bench) -> None:
    bench.write(rows(bench.folder, 4))
    for share, purpose in ((0, "evaluation"), (1, "training")):
        prepared = bench.prepare(f"data.held_out={share}")
        says = rf"={share} keeps none of 4 questions for {purpose}; set it to (\S+) to keep (\d) for evaluation$"
        with pytest.raises(DataError, match=says) as error:
            bench.prompts(prepared)
    found = re.search(says, str(error.value))
    assert found is not None
    held_out = bench.prompts(bench.prepare(f"data.held_out={found[1]}")).held_out(10)
    assert len(held_out) == int(found[2])
    with pytest.raises(
        DataError, match=r"^data.sources keeps none of 4 questions for evaluation; set a source's split to both"
    ):
        bench.prompts(bench.prepare("data.sources.main.split=train"))


def test_media_in_a_column_of_another_name_are_not_text_alone(bench: Bench) -> None:
    bench.write([{"image": "a.png", **row} for row in rows(bench.folder, 3)])
    columns = "data.sources.main.columns"
    there = "rows.jsonl, which has data_type, image, path, problem, problem_id, problem_type, process, solution"
    for given, says in (
        (
            f"{columns}.images=images",
            f"{columns}.images=images: not in any row of {there}; set it to one of these, or to",
        ),
        (f"{columns}={{images: images, videos: videos}}", f"{columns}.images=images, {columns}.videos=videos: not in"),
        (f"{columns}.question=quest", f"{columns}.question=quest: not in any row of {there}; set it to one of these$"),
    ):
        with pytest.raises(DataError, match=f"^{says}"):
            bench.prepare(given)
    prepared = bench.prepare(f"{columns}.videos=videos", f"{columns}.options=null")
    assert absent_columns(prepared) == [f"{columns}.videos=videos"]
    text = bench.prepare(f"{columns}.images=null", f"{columns}.media_type=null")
    assert [row.media for row in read_prepared(text)] == [()] * 3


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("path: cat.png: no such file below /data/a", "path: … no such file below …"),
        ("images[1]: trunc.jpg: cut short or damaged", "images: … cut short or damaged"),
        ("images[12]: not a picture", "images: not a picture"),
        ("reward_model.ground_truth: not in the row, which has a, b", "reward_model.ground_truth: not in the row"),
        ("a.b: not in the row, whose a has c", "a.b: not in the row"),
        ("60 images; at most 16 are supported", "… images; at most … are supported"),
    ],
)
def test_reasons_of_a_kind_differ_by_what_is_their_row_s_own(reason: str, kind: str) -> None:
    assert kind_of_reason(reason) == kind


def test_two_preparations_of_the_same_files_do_not_mix(bench: Bench) -> None:
    import subprocess
    import sys

    bench.write(rows(bench.folder, 2))
    prepared = bench.prepare()
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(prepared / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(SetupError, match="another run is preparing the same files"):
            bench.prepare()
        other.communicate(b"\n")


def test_thoughts_are_read_where_they_are_imitated(bench: Bench) -> None:
    given = rows(bench.folder, 3)
    given[0]["process"], given[1]["process"] = "", "<think> <|im_end|> </think>"
    del given[2]["process"]
    bench.write(given)
    assert len(left_out(bench.prepare("stages=[sft,rl]"))) == 3
    prepared = bench.prepare("stages=[rl]")
    assert not left_out(prepared) and {row.thought for row in read_prepared(prepared)} == {None}


def test_a_gap_that_a_power_cut_left_is_closed(bench: Bench) -> None:
    bench.write(rows(bench.folder, 6))
    prepared = bench.prepare()
    whole = (prepared / "questions.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    for kept in (lines[:2] + lines[3:], [*lines, lines[1]]):
        (prepared / "questions.jsonl").write_text("".join(kept))
        (prepared / "prepared.json").unlink()
        assert bench.prepare() == prepared and (prepared / "questions.jsonl").read_text() == whole


def test_a_line_survives_the_file(bench: Bench) -> None:
    bench.write(rows(bench.folder, 1))
    (row,) = read_prepared(bench.prepare("stages=[sft,rl]"))
    assert isinstance(row, PreparedQuestion)
    assert row.thought == BOARD.record("train", 0).thought
    assert row == replace(row, media=(row.media[0],))
