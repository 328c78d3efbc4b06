import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file, save_file

from ral_system.errors import SetupError
from ral_system.models import staging
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


def test_another_training_of_the_same_model_is_refused(tiny_model: Path, tmp_path: Path, this_node: Path) -> None:
    """Its files have the same names, headers and sizes."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    copy = ModelCopy.of(folder)
    assert copy.find() == folder
    weights = load_file(folder / "model.safetensors")
    size = (folder / "model.safetensors").stat().st_size
    for name, weight in weights.items():
        save_file(weights | {name: weight + 1}, folder / "model.safetensors", metadata={"format": "pt"})
        assert (folder / "model.safetensors").stat().st_size == size
        with pytest.raises(SetupError, match=r"has different files in model folder .* from the driver's node; copy"):
            copy.find()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert copy.find() == folder


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors.index.json", "chat_template.jinja"]
)
def test_other_text_of_the_same_size_is_another_model(tmp_path: Path, name: str) -> None:
    folder = plain(tmp_path)
    (folder / name).write_text("a" * 5000 + "b" * 5000)
    before = model_digest(folder)
    (folder / name).write_text("a" * 4999 + "b" * 5001)
    assert model_digest(folder) != before


def huge(file: Path, tensors: int, gib: int) -> int:
    """Write a sparse safetensors file; return where its data begin."""
    each = gib * 2**30 // tensors
    entries = {
        f"t{i}": {"dtype": "U8", "shape": [each], "data_offsets": [i * each, (i + 1) * each]} for i in range(tensors)
    }
    header = json.dumps(entries).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, 8 + len(header) + tensors * each)
    return 8 + len(header)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's count of bytes read")
@pytest.mark.parametrize("tensors", [3, 2_000])
def test_of_a_large_file_at_most_a_mebibyte_of_weights_is_read(tmp_path: Path, tensors: int) -> None:
    folder = plain(tmp_path)
    start = huge(folder / "model.safetensors", tensors, gib=16)

    def read_so_far() -> int:
        return int(re.findall(r"rchar: (\d+)", Path("/proc/self/io").read_text())[0])

    before = read_so_far()
    first = model_digest(folder)
    assert read_so_far() - before < start + 2**20 + 2**14
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(start + int((tensors // 2 + 0.5) * (2**34 // tensors)))  # the middle of the middle tensor
        file.write(b"1")
    assert model_digest(folder) != first


def test_weights_without_a_header_are_sampled_from_end_to_end(tmp_path: Path) -> None:
    folder, size = plain(tmp_path), 2**22
    for name in ("pytorch_model.bin", "broken.safetensors"):
        (folder / name).write_bytes(bytes(size))
    before = model_digest(folder)
    for name in ("pytorch_model.bin", "broken.safetensors"):
        for at in range(0, size, size // 16):
            with (folder / name).open("r+b") as file:
                file.seek(at)
                file.write(bytes([1]) * (size // 64))
            assert model_digest(folder) != before
            (folder / name).write_bytes(bytes(size))
    assert model_digest(folder) == before


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = plain(tmp_path)

    def refuse(*given: Any) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(staging.os, "pread", refuse)
    with pytest.raises(SetupError, match=r"^cannot read .*/model.safetensors \(Permission denied\); correct its perm"):
        model_digest(folder)


def test_the_digest_is_of_the_files_that_make_a_model(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    before = model_digest(folder)
    (folder / "README.md").write_text("not all copies have one")
    (folder / ".cache").mkdir()
    assert model_digest(folder) == before
    (folder / "tokenizer.json").write_text("{}")
    assert model_digest(folder) != before
    assert model_digest(tmp_path) == ""
