"""easy-VQA as rows, from the real package."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from ral_system.errors import SetupError
from ral_system.tasks.easy_vqa import main, package_data, write_rows


def test_every_question_of_the_package_becomes_a_row_with_its_picture(tmp_path: Path) -> None:
    assert write_rows(package_data(), tmp_path) == {"train": 38_575, "test": 9_673}
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert Counter(row["kind"] for row in rows)["yes or no"] == 7_136
    assert {row["answer"] for row in rows if row["kind"] == "shape"} == {"circle", "rectangle", "triangle"}
    assert {Image.open(tmp_path / row["picture"]).size for row in rows[:200]} == {(64, 64)}


def test_without_the_package_or_a_folder_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["easy_vqa"])
    with pytest.raises(SystemExit, match=r"usage: python -m ral_system\.tasks\.easy_vqa FOLDER"):
        main()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="pip install easy-vqa"):
        package_data()
    monkeypatch.setattr(sys, "argv", ["easy_vqa", "somewhere"])
    with pytest.raises(SystemExit, match="error: the package easy-vqa is not installed"):
        main()
