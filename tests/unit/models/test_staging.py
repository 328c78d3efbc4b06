import re
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from ral_system.errors import SetupError
from ral_system.models.staging import ModelCopy, model_digest
from tests.unit.models.hub_cache import REPO, REVISION, put_in_cache


@pytest.fixture
def this_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """HF_HOME of the node that looks; it reaches no network."""
    home = tmp_path / "this"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return home


def plain(folder: Path) -> Path:
    return shutil.copytree(put_in_cache(folder / "hub"), folder / "plain")


def test_a_snapshot_of_the_hub_is_known_by_its_path(tmp_path: Path) -> None:
    copy = ModelCopy.of(put_in_cache(tmp_path))
    assert (copy.repo, copy.revision) == (REPO, REVISION)
    assert ModelCopy.of(plain(tmp_path / "other")).repo is None


def test_a_shared_folder_is_used_where_it_is(tmp_path: Path, this_node: Path) -> None:
    for folder in (plain(tmp_path), put_in_cache(tmp_path / "shared")):
        assert ModelCopy.of(folder).find() == folder


def test_a_hub_model_comes_from_the_cache_of_the_node(tmp_path: Path, this_node: Path) -> None:
    copy = ModelCopy.of(put_in_cache(tmp_path / "driver"))
    shutil.rmtree(tmp_path / "driver")  # another node's disk
    own = put_in_cache(this_node)
    assert copy.find() == own


def test_a_hub_model_that_cannot_be_fetched_is_one_line(tmp_path: Path, this_node: Path) -> None:
    copy = ModelCopy.of(put_in_cache(tmp_path / "driver"))
    shutil.rmtree(tmp_path / "driver")
    with pytest.raises(
        SetupError, match=rf"cannot read model folder {copy.folder}, .* put HF_HOME on a volume"
    ) as caught:
        copy.find()
    assert "\n" not in str(caught.value)


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path, this_node: Path) -> None:
    copy = ModelCopy.of(put_in_cache(tmp_path / "driver"))
    shutil.rmtree(tmp_path / "driver")
    put_in_cache(this_node, weights=b"half")
    with pytest.raises(SetupError, match=r"has different files of org/tiny in .* from the driver's node"):
        copy.find()


def test_a_folder_of_ones_own_must_be_on_every_node(tmp_path: Path, this_node: Path) -> None:
    copy = ModelCopy.of(plain(tmp_path))
    (copy.folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(SetupError, match=r"different files in model folder .* from the driver's node; copy the folder"):
        copy.find()
    shutil.rmtree(copy.folder)
    with pytest.raises(
        SetupError, match=f"^cannot read model folder {re.escape(str(copy.folder))}; put it on a volume"
    ):
        copy.find()


def test_the_digest_is_of_the_files_that_make_a_model(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    before = model_digest(folder)
    (folder / "README.md").write_text("not all copies have one")
    (folder / ".cache").mkdir()
    assert model_digest(folder) == before
    (folder / "tokenizer.json").write_text("{}")
    assert model_digest(folder) != before
    assert model_digest(tmp_path) == ""
