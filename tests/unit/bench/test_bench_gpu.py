import ast
import json
import re
import sys
import time
from pathlib import Path

import pytest

from bench import gpu
from bench.gpu import PARTS, Part, figures
from tests.gpu.rows import row

TESTS = Path(__file__).parents[2] / "gpu"
MEASURES = re.compile(r"perf_counter|max_memory_allocated|memory_reserved|mem_get_info|\.norm\(|cosine_similarity")


def test_a_part_that_fails_or_hangs_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def part(name: str, code: str, own_s: float = 60.0) -> Part:
        return Part(name, own_s, (sys.executable, "-u", "-c", code))

    hangs = "import time; print('began', flush=True); time.sleep(60)"
    fails = "import sys; print('| b |'); print('text'); print('| a | b |'); print('| b |'); sys.exit(3)"
    parts = (part("hangs", hangs, 0.5), part("fails", fails), part("says", "1"))
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code
    out = capsys.readouterr().out
    *_, first, second, third = out.splitlines()
    assert "\nfails\n| a | b |\n| b |\n\nsays\n" in out  # rows that came before the table, in it only
    assert re.match(r"\| hangs \| \d+ \| out of time \| ", first)
    assert second.startswith("| fails | ") and second.endswith(" | exit code 3 | b |")
    assert third.endswith(" | done |  |")
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [found["exit_code"] for found in written["parts"]] == [None, 3, 0]
    assert [found["figures"] for found in written["parts"]] == [["began"], ["| a | b |", "| b |"], []]
    assert (tmp_path / "fails.log").read_text() == "| b |\ntext\n| a | b |\n| b |\n"


def test_rows_between_pytests_dots_are_figures(capsys: pytest.CaptureFixture[str]) -> None:
    for cells in (("copy of 3 GB", "1.2 ms"), ("peak 300 MiB",)):
        row(*cells)
        print(".", end="")
    assert figures(capsys.readouterr().out.splitlines()) == ["| copy of 3 GB | 1.2 ms |", "| peak 300 MiB |"]


def test_whatever_the_gpu_tests_measure_is_a_row() -> None:
    measuring = []
    for file in TESTS.glob("test_*.py"):
        text = file.read_text()
        assert "print(" not in text, f"{file.name} prints a figure that is not a row"
        for function in (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)):
            source, keeps = ast.unparse(function), ast.unparse(function.returns or ast.Constant(None)) == "None"
            if keeps and MEASURES.search(source) and "assert " in source:
                measuring.append(function.name)
                assert "row(" in source, f"{file.name}: {function.name} measures, and prints no row"
    assert len(measuring) > 8


def test_every_file_of_tests_is_a_part() -> None:
    files = [part.command[-1] for part in PARTS if part.tests]
    assert sorted(files) == sorted(f"tests/gpu/{file.name}" for file in TESTS.glob("test_*.py"))
    assert [part.tests for part in PARTS] == ["pytest" in part.command for part in PARTS]


def test_a_part_outlasts_a_test_that_hangs(tmp_path: Path) -> None:
    part = Part("says", 60.0, (sys.executable, "-c", "import sys; print(sys.argv[1])"), tests=True)
    found = gpu.run(part, tmp_path, time.monotonic() + 60.4, quick=True)
    assert found["figures"] == ["--timeout=30"]


def test_the_parts_take_less_than_eight_minutes_whatever_hangs() -> None:
    assert sum(part.own_s for part in PARTS) == 450


def test_every_part_has_its_time_and_what_earlier_ones_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    takes = {"a": 99.0, "b": 5.0, "c": 25.0, "d": 99.0}
    limits = {}

    def run(part: Part, out: Path, ends_s: float, *, quick: bool) -> dict[str, object]:
        limits[part.name] = ends_s - clock[0]
        clock[0] += min(takes[part.name], limits[part.name])
        return {"part": part.name, "exit_code": 0, "seconds": 0.0, "last_lines": [], "figures": []}

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        gpu, "PARTS", tuple(Part(name, own_s, ()) for name, own_s in zip("abcd", (10, 20, 30, 40), strict=True))
    )
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        gpu.main()
    # a hangs and loses its 10 s alone; b leaves 15 s to c, which leaves 20 s to d; the last ends when all have to.
    assert limits == {"a": 10, "b": 20, "c": 45, "d": 60}
    assert clock == [1100]


def test_a_part_that_hangs_is_ended(tmp_path: Path) -> None:
    hangs = Part("hangs", 9, (sys.executable, "-c", "import time; time.sleep(60)"))
    found = gpu.run(hangs, tmp_path, time.monotonic() + 0.3, quick=True)
    assert found["exit_code"] is None and 0.3 <= found["seconds"] < 5


def test_a_machine_without_a_gpu_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.gpu"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "torch finds no CUDA device; --quick tries the parts without one" in capsys.readouterr().err
