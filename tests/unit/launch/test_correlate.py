import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ral_system.launch import correlate


def write(folder: Path, accuracy: float, score: float) -> Path:
    folder.mkdir()
    figures = {"visual_attention_score": score, "visual_mass": score / 20, "system_mass": 0.05}
    (folder / "evaluation.json").write_text(json.dumps({"eval/accuracy": accuracy, **figures}))
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ral-correlate", *arguments])
    correlate.main()


def test_r_by_hand_and_a_named_point_for_every_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # deviations: x -1, 0, 1; y -0.2, 0.1, 0.1: r = 0.3 / sqrt(2 * 0.06)
    folders = [write(tmp_path / n, a, s) for n, a, s in (("a", 0.4, 5.0), ("b<", 0.7, 6.0), ("c", 0.7, 7.0))]
    run(monkeypatch, *map(str, folders), "--out", str(tmp_path / "plot.svg"))
    out = capsys.readouterr().out
    assert "r(accuracy, visual attention score) = 0.87" in out
    assert "r(accuracy, system mass) = not defined" in out
    svg = ElementTree.parse(tmp_path / "plot.svg").getroot()
    titles = {t.text for t in svg.iter("{http://www.w3.org/2000/svg}title")}
    assert titles == {"a: 5, 0.4", "b<: 6, 0.7", "c: 7, 0.7"}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "does not exist; run ral-evaluate"), ("{", "Expecting property name"), ("{}", "has no eval/accuracy")],
)
def test_a_folder_without_an_evaluation_is_one_line(
    content: str | None,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, str(tmp_path))
    err = capsys.readouterr().err
    assert ended.value.code == 2 and complaint in err and err.count("\n") == 1


def test_a_plot_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write(tmp_path / name, 0.5, i) for i, name in enumerate("abc")]
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *map(str, folders), "--out", f"{tmp_path}/none/plot.svg")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: --out {tmp_path}/none/plot.svg: No such file or directory\n"


def test_two_models_are_too_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write(tmp_path / name, 0.5, 1.0) for name in ("a", "b")]
    with pytest.raises(SystemExit):
        run(monkeypatch, *map(str, folders))
    assert "2 folders are too few" in capsys.readouterr().err
