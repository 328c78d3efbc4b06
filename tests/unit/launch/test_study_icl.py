"""`ral-study icl`: the command in this process, its files, and what it refuses."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from ral_system.launch.study import cli, icl
from ral_system.studies.icl.policy_gradient import ALONE, ARMS


def test_a_quick_study_writes_its_tables_and_charts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["ral-study", "icl", "--quick", "--seeds", "0", "7", "--runs-dir", str(tmp_path)])
    cli.main()
    assert torch.get_num_threads() == threads
    folder = tmp_path / "icl"
    table = folder.joinpath("icl.md").read_text()
    assert table.strip() in capsys.readouterr().out
    found = json.loads(folder.joinpath("icl.json").read_text())
    assert found["seeds"] == [0, 7] and list(found["policy_gradient"]) == list(ARMS)
    assert list(found["alone"]) == list(ALONE)
    excess = [of_seed["excess"]["cross"] for of_seed in found["regression"]]
    assert all(by_depth["4"] < by_depth["1"] / 10 for by_depth in excess)
    mean = math.sqrt(excess[0]["1"] * excess[1]["1"])  # geometric
    (row,) = re.findall(r"^\| cross-attention \| ([\d.]+) \[", table, re.MULTILINE)
    assert float(row) == pytest.approx(mean, rel=0.01)
    runs = {name: [run[-1]["reward"] for run in of] for name, of in found["policy_gradient"].items()}
    gain = sum(a - b for a, b in zip(runs["told"], runs["GRPO"], strict=True)) / 2
    cells, _ = re.findall(r"^\| told \| (.+) \|$", table, re.MULTILINE)
    assert float(cells.split(" | ")[1].split(" [")[0]) == pytest.approx(gain, rel=0.01)
    for chart in ("icl_depth.svg", "icl_attention.svg", "icl_alone.svg"):
        drawn = folder.joinpath(chart).read_text()
        ElementTree.fromstring(drawn)
        assert "not measured" not in drawn
    assert ">layers<" in folder.joinpath("icl_depth.svg").read_text()


@pytest.mark.parametrize(
    ("seeds", "says"),
    [(["1", "1"], "--seeds 1: given twice"), (["-3"], "--seeds -3: is negative"), (["a"], "invalid int value: 'a'")],
)
def test_bad_seeds_are_refused(
    seeds: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ral-study", "icl", "--seeds", *seeds])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(icl, "run", interrupted)
    with pytest.raises(SystemExit) as stopped:
        icl.main(["--quick"])
    assert stopped.value.code == 130 and capsys.readouterr().err == "interrupted; nothing was written\n"


def test_the_list_of_studies_has_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["ral-study", "nothing_like_it"])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert "known studies: " in said and said.strip().endswith(", icl (must come first)")
