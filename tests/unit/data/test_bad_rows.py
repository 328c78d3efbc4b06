"""Files as bad as they come, prepared as a run prepares them: every row ends as it should, and none is lost."""

import gc
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from av.video.frame import VideoFrame
from pyarrow import parquet

from ral_system.config.commands import TrainConfig
from ral_system.config.data import FilesConfig
from ral_system.data import preparation
from ral_system.data.preparation import read_prepared
from ral_system.data.sources.files import read_rows
from ral_system.errors import DataError
from ral_system.media.store import MediaStore
from ral_system.media.videos import VideoLimits, VideoSampling, decode_video
from ral_system.models.loading import load_family
from ral_system.observability.jsonl import read_objects
from ral_system.tasks.open import QuestionSettings, prepare_files
from tests.unit.data.bad_files import png, video
from tests.unit.data.bad_kinds import Kind, Left, Nothing, Source, Used
from tests.unit.data.bad_media import LIST
from tests.unit.data.bad_runs import LONG_AGO, SETTINGS, SOURCES, Outcome, prepare_everything
from tests.unit.data.bad_texts import TEXTS, good
from tests.unit.data.bad_wholes import BROKEN_FILES, EXTRA_COLUMNS, not_utf8, whole

MAX_SECONDS = 40


@pytest.fixture(scope="module")
def outcome(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, make_config: Callable[..., TrainConfig]
) -> Outcome:
    return prepare_everything(tmp_path_factory.mktemp("bad"), tiny_model, make_config)


KINDS = [(source, kind) for source in SOURCES for kind in source.kinds]


@pytest.mark.parametrize(("source", "kind"), KINDS, ids=[f"{source.name}: {kind.name}" for source, kind in KINDS])
def test_every_kind_ends_as_it_should(source: Source, kind: Kind, outcome: Outcome) -> None:
    id = outcome.ids[source.name, kind.name]
    if id is None:
        assert isinstance(kind.end, Nothing)
    elif isinstance(kind.end, Left):
        line = outcome.left_out.get(id)
        assert line is not None, f"used: {outcome.used[id]}"[:400]
        assert line["cause"] == kind.end.cause and re.search(kind.end.reason, line["reason"]), line["reason"]
    else:
        assert isinstance(kind.end, Used) and id in outcome.used, outcome.left_out[id]["reason"]
        check_used(outcome, id, kind.built(source.good(kind.name)), kind.end)


def check_used(outcome: Outcome, id: str, row: Any, end: Used) -> None:
    found, prompt = outcome.used[id], outcome.prompts[id]
    if isinstance(row, dict):
        options = [str(option).strip() for option in row.get("options") or []]
        instruction = outcome.instructions.get(row.get("problem_type"), "")
        assert found.question == "\n".join(filter(None, [row["problem"].strip(), *options, instruction]))
    assert found.answer == end.answer
    assert [(m.kind, m.width_px, m.height_px, m.frames) for m in found.media] == [
        (seen.kind, seen.width_px, seen.height_px, seen.frames) for seen in end.media
    ]
    store = MediaStore(outcome.prepared / "media")
    for media, seen in zip(found.media, end.media, strict=True):
        frames = store.frames(media)
        assert frames.shape == (seen.frames, seen.height_px, seen.width_px, 3)
        assert np.abs(frames[:, 2, 2].astype(int) - seen.corner).max() < 12
    assert (prompt.question, prompt.answer, prompt.media) == (found.question, found.answer, found.media)
    assert len(prompt.token_ids) == found.tokens <= 600


def test_good_rows_between_them_are_used(outcome: Outcome) -> None:
    assert len(outcome.good) > 60 and set(outcome.good) <= set(outcome.used)
    for id, row in outcome.good.items():
        check_used(outcome, id, row, Used())


def test_used_and_left_out_are_the_input(outcome: Outcome) -> None:
    expected = {*filter(None, outcome.ids.values()), *outcome.good}
    lines = [*read_objects(outcome.prepared / "questions.jsonl"), *read_objects(outcome.prepared / "quarantine.jsonl")]
    assert len(lines) == len(expected) and {line["id"] for line in lines} == expected
    for source in SOURCES:
        count = sum(1 for _ in read_rows(outcome.root / source.file))
        ids = {id for id in expected if id.startswith(f"{source.name}/")}
        assert ids == {f"{source.name}/{number}" for number in range(count)}
    assert set(outcome.prompts) == set(outcome.used)


def test_the_summary_counts_the_same(outcome: Outcome) -> None:
    summary = json.loads((outcome.prepared / "prepared.json").read_text())
    assert summary["rows"] == len(outcome.used) + len(outcome.left_out)
    assert summary["used"] == Counter(row.split for row in outcome.used.values())
    assert summary["left_out"] == Counter(line["cause"] for line in outcome.left_out.values())
    broken = [line["reason"] for line in outcome.left_out.values() if line["cause"] == "broken"]
    reasons = Counter(preparation.kind_of_reason(reason) for reason in broken)
    assert len(summary["reasons"]) == 20
    assert all(reasons[reason] == count for reason, count in summary["reasons"].items())
    assert sorted(summary["reasons"].values()) == sorted(reasons.values())[-20:]


def test_reasons_are_one_printable_line(outcome: Outcome) -> None:
    """They are shown in terminals, and counted: the text about a row may not depend on its number."""
    for line in outcome.left_out.values():
        assert line["reason"].isprintable() and 0 < len(line["reason"]) <= 400, line["reason"]


def test_reasons_do_not_differ_by_row(outcome: Outcome) -> None:
    for id, line in outcome.left_out.items():
        assert line["cause"] == "duplicate" or id not in line["reason"]


def test_rows_that_are_left_out_keep_the_id_they_came_with(outcome: Outcome) -> None:
    for source in (TEXTS, LIST):
        for kind in source.kinds:
            id = outcome.ids[source.name, kind.name]
            if id in outcome.left_out and isinstance(kind.given, dict) and "problem_id" not in kind.given:
                given = kind.built(source.good(kind.name))["problem_id"]
                assert outcome.left_out[id]["given_id"] == given, kind.name


def test_nothing_outside_the_root_is_read(outcome: Outcome) -> None:
    store, shared = outcome.prepared.parent, outcome.prepared.parent / "media"
    links = [path for path in store.rglob("*") if path.is_symlink()]
    assert links
    allowed = (outcome.root.resolve(), shared.resolve())
    assert all(any(link.resolve().is_relative_to(folder) for folder in allowed) for link in links)
    assert not list(store.rglob("*.partial"))
    for secret in outcome.root.parent.glob("secret.*"):
        assert secret.stat().st_atime == LONG_AGO
        digest = hashlib.sha256(secret.read_bytes()).hexdigest()
        assert not list(store.rglob(f"{digest}*"))


def test_it_does_not_take_long(outcome: Outcome) -> None:
    assert outcome.seconds < MAX_SECONDS


def test_frames_of_a_video_are_let_go() -> None:
    """At once, and not when memory is next swept: 128 frames of a large video are gigabytes."""
    gc.collect()
    gc.disable()
    try:
        decode_video(video(64), VideoSampling(1, 128, 4), VideoLimits())
        frames = [each for each in gc.get_objects() if type(each) is VideoFrame]
        assert sum(frame.width == 140 for frame in frames) <= 2
    finally:
        gc.enable()


# Files that are broken as a whole


Prepare = Callable[..., Path]


@pytest.fixture
def prepare(tmp_path: Path, tiny_model: Path, make_config: Callable[..., TrainConfig]) -> Prepare:
    (tmp_path / "good.png").write_bytes(png())

    def prepared(path: Path, *overrides: str) -> Path:
        config = make_config(
            *SETTINGS,
            "+data/source@data.sources.main=video_r1",
            f"data.sources.main.path={path}",
            "data.sources.main.columns.thought=null",
            *overrides,
        )
        assert isinstance(config.data, FilesConfig)
        return prepare_files(QuestionSettings.of(config), config.data, load_family(tiny_model), tmp_path / "runs")

    return prepared


def check_refused(prepare: Prepare, path: Path, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as error:
        prepare(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not list(path.parent.glob("runs/.prepared/*/prepared.json"))


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_file_that_is_broken_as_a_whole_is_named(name: str, prepare: Prepare, tmp_path: Path) -> None:
    file, content, reason = BROKEN_FILES[name]
    (tmp_path / file).write_bytes(content())
    check_refused(prepare, tmp_path / file, reason)


def test_folders_and_pipes_are_no_files(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "rows.json").write_bytes(whole(".json"))
    check_refused(prepare, tmp_path / "folder", r"a folder without data-\*.arrow files")
    os.mkfifo(tmp_path / "pipe.jsonl")
    check_refused(prepare, tmp_path / "pipe.jsonl", "no such file")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    check_refused(prepare, tmp_path / "loop.jsonl", "not there|no such file")


def test_a_dataset_without_one_of_its_shards_is_refused(prepare: Prepare, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    table = pa.Table.from_pylist([good("one")])
    with (
        pa.OSFile(str(folder / "data-00000-of-00002.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    check_refused(prepare, folder, "data-00001-of-00002.arrow")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(prepare: Prepare, tmp_path: Path) -> None:
    for suffix in (".jsonl", ".json", ".parquet"):
        path = tmp_path / f"locked{suffix}"
        path.write_bytes(whole(suffix))
        path.chmod(0)
        check_refused(prepare, path, "[Pp]ermission denied")


# Columns that nobody asks for


@pytest.mark.parametrize("name", EXTRA_COLUMNS)
def test_a_column_that_is_not_asked_for_does_no_harm(name: str, prepare: Prepare, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([good("one"), good("two")]).append_column("extra", EXTRA_COLUMNS[name])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert len(read_prepared(prepare(tmp_path / "a.parquet"))) == 2


def test_a_text_that_is_not_utf8_costs_its_row(prepare: Prepare, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([good("one"), good("two"), good("three")])
    at = table.column_names.index("problem")
    table = table.set_column(at, "problem", not_utf8([b"one ?", b"\xff\xfe", b"three ?"]))
    parquet.write_table(table, tmp_path / "a.parquet")
    prepared = prepare(tmp_path / "a.parquet")
    assert [row.id for row in read_prepared(prepared)] == ["main/0", "main/2"]
    (line,) = read_objects(prepared / "quarantine.jsonl")
    assert line["id"] == "main/1" and "UTF-8" in line["reason"]


def test_a_byte_or_a_number_costs_its_row_of_a_json(prepare: Prepare, tmp_path: Path) -> None:
    rows = [good("one"), good("two") | {"problem": "BAD"}, good("three") | {"solution": 0}, good("four")]
    text = (
        json.dumps(rows)
        .encode()
        .replace(b"BAD", b"what \xff ?")
        .replace(b'"solution": 0', b'"solution": ' + b"9" * 5000)
    )
    (tmp_path / "a.json").write_bytes(text)
    prepared = prepare(tmp_path / "a.json")
    assert {row.id for row in read_prepared(prepared)} >= {"main/0", "main/3"}
    reasons = {line["id"]: line["reason"] for line in read_objects(prepared / "quarantine.jsonl")}
    assert "not UTF-8" in reasons["main/1"]
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(json.dumps(row).encode() for row in rows).replace(b"BAD", b"\xff"))
    reasons = {line["id"]: line["reason"] for line in read_objects(prepare(tmp_path / "b.jsonl") / "quarantine.jsonl")}
    assert "not UTF-8" in reasons["main/1"]


def test_a_nested_id_is_kept(prepare: Prepare, tmp_path: Path) -> None:
    rows = [good("one") | {"about": {"id": "one"}}, good("two") | {"about": {"id": "two"}, "problem": None}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (line,) = read_objects(prepare(tmp_path / "a.json", "data.sources.main.columns.id=about.id") / "quarantine.jsonl")
    assert line["given_id"] == "two"


def test_an_answer_that_cannot_be_imitated_is_left_out(prepare: Prepare, tmp_path: Path) -> None:
    """Without thoughts sft imitates the answer alone: it must also have tokens."""
    rows = [good("one"), good("two") | {"solution": "<|im_end|>"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    overrides = ("stages=[sft,rl]", "algorithm.response_format=answer_only")
    (line,) = read_objects(prepare(tmp_path / "a.json", *overrides) / "quarantine.jsonl")
    assert line["id"] == "main/1" and "<|im_end|>" in line["reason"]


# The rate


@pytest.fixture
def one_in_ten(tmp_path: Path) -> Path:
    rows = [good(str(i)) | ({"path": "none.png"} if i % 10 == 9 else {}) for i in range(120)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    return tmp_path / "a.json"


def test_too_many_broken_rows_stop_it_and_say_where_they_are(prepare: Prepare, one_in_ten: Path) -> None:
    with pytest.raises(DataError, match=r"^\d+ of 1\d\d rows cannot be used, more than data.max_broken=0.05") as error:
        prepare(one_in_ten, "data.max_broken=0.05")
    assert re.search(
        r"most often, in \d+ rows: path: none.png: no such file below .* See .*quarantine\.jsonl; ", str(error.value)
    )
    assert "\n" not in str(error.value)
    named = re.search(r"See (\S+);", str(error.value))
    assert named is not None and len(read_objects(Path(named[1]))) > 5
    assert not (Path(named[1]).parent / "prepared.json").exists()


def test_as_many_broken_rows_as_may_be(prepare: Prepare, one_in_ten: Path) -> None:
    assert len(read_prepared(prepare(one_in_ten, "data.max_broken=0.1"))) == 108
