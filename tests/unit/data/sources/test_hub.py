"""Sources on disk and on the hub, from a cache such as a download leaves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from ral_system.config.commands import TrainConfig
from ral_system.config.data import SourceConfig
from ral_system.data.sources.files import Survey, files_of, read_rows, survey
from ral_system.data.sources.hub import located
from ral_system.data.sources.questions import read_question
from ral_system.errors import DataError

Source = Callable[..., SourceConfig]


@pytest.fixture
def source(make_config: Callable[..., TrainConfig]) -> Source:
    def made(path: str, files: str = "null") -> SourceConfig:
        given = (f"data.sources.main.path={path}", f"data.sources.main.files={files}")
        data = make_config("data=easyr1", "stages=[rl]", *given).data
        assert data.name == "files"
        return data.sources["main"]

    return made


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds one revision of a dataset, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "datasets--hiyouga--geometry3k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    snapshot = repository / "snapshots" / ("a" * 40)
    (snapshot / "data").mkdir(parents=True)
    return snapshot


def rows(path: Path, *values: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"n": value}) + "\n" for value in values))


def test_a_dataset_of_the_hub_by_name(source: Source, hub: Path) -> None:
    rows(hub / "data" / "train-0.jsonl", 1, 2)
    rows(hub / "data" / "train-1.jsonl", 3)
    rows(hub / "data" / "test-0.jsonl", 4)
    given = source("hiyouga/geometry3k", "data/train-*.jsonl")
    found = located("main", given)
    assert found == hub
    assert [(r.number, r.fields) for r in read_rows(found, pattern=given.files)] == [
        (0, {"n": 1}),
        (1, {"n": 2}),
        (2, {"n": 3}),
    ]
    assert survey(found, given.files) == Survey(3, frozenset("n"))


def test_the_cache_links_pictures_to_blobs_of_its_own_and_to_nothing_else(source: Source, hub: Path) -> None:
    blobs = hub.parents[1] / "blobs"
    blobs.mkdir()
    (blobs / "0a").write_bytes(b"a picture")
    (hub.parents[2] / "secret").write_bytes(b"of somebody else")
    (hub / "images").mkdir()
    (hub / "images" / "a.png").symlink_to("../../../blobs/0a")
    (hub / "images" / "b.png").symlink_to("../../../../secret")
    given = source("hiyouga/geometry3k", "data/train-*.jsonl")
    columns = given.columns.model_copy(update={"images": "image", "videos": None})
    root = located("main", given)
    row = {"problem": "<image> what ?", "answer": "a", "image": "images/a.png"}
    assert read_question(row, columns, root).media[0].path == blobs / "0a"
    with pytest.raises(DataError, match="leads out of"):
        read_question(row | {"image": "images/b.png"}, columns, root)
    with pytest.raises(DataError, match="leads out of"):
        read_question(row | {"image": "../../refs/main"}, columns, root)


def test_what_of_a_dataset_is_fetched(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, *, repo_type: str, revision: str | None, allow_patterns: list[str] | None) -> str:
        asked.append((name, repo_type, revision, allow_patterns))
        return "/downloaded"

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with_media = source("org/name", "rows.jsonl").model_copy(update={"media_files": "images/*", "revision": "v1"})
    for given in (source("org/name"), source("org/name", "rows.jsonl"), with_media):
        assert located("main", given) == Path("/downloaded")
    assert asked == [
        ("org/name", "dataset", None, None),
        ("org/name", "dataset", None, ["rows.jsonl"]),
        ("org/name", "dataset", "v1", ["rows.jsonl", "images/*"]),
    ]


def test_what_is_neither_local_nor_on_the_hub_is_named(source: Source, hub: Path, tmp_path: Path) -> None:
    for path in ("./rows.json", f"{tmp_path}/rows.json", "folder/rows.json", "rows.json"):
        with pytest.raises(DataError, match=r"^data.sources.main.path=.*rows.json: no such file or folder; correct it"):
            located("main", source(path))
    with pytest.raises(DataError, match=r"^data.sources.main.path=nobody/nothing: not a local file or folder, and"):
        located("main", source("nobody/nothing"))


def test_files_of_a_folder(source: Source, tmp_path: Path) -> None:
    rows(tmp_path / "b.jsonl", 1)
    rows(tmp_path / "a.jsonl", 2)
    assert located("main", source(str(tmp_path))) == tmp_path
    assert [file.name for file in files_of(tmp_path, "*.jsonl")] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(DataError, match=r"a folder without train-\* files; correct data.sources.NAME.files"):
        files_of(tmp_path, "train-*")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    rows(tmp_path / "data" / "train-00000-of-00003.jsonl", 1)
    rows(tmp_path / "data" / "train-00002-of-00003.jsonl", 1)
    with pytest.raises(DataError, match=r"data/train-00001-of-00003.jsonl is missing; copy the whole dataset"):
        files_of(tmp_path, "data/*.jsonl")
