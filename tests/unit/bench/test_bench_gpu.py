import ast
import json
import re
import sys
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
    def part(name: str, code: str, limit_s: float = 60.0) -> Part:
        return Part(name, limit_s, (sys.executable, "-u", "-c", code))

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


def test_every_file_of_tests_is_a_part_that_outlasts_a_hanging_test() -> None:
    files = {}
    for part in PARTS:
        if "pytest" in part.command:
            *options, file = part.command
            (timeout_s,) = (float(option[10:]) for option in options if option.startswith("--timeout="))
            assert timeout_s <= part.limit_s / 2
            files[file] = part
    assert sorted(files) == sorted(f"tests/gpu/{file.name}" for file in TESTS.glob("test_*.py"))


def test_the_parts_take_less_than_eight_minutes_whatever_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.LIMIT_S <= 450 and max(part.limit_s for part in PARTS) <= gpu.LIMIT_S / 3
    hangs = (sys.executable, "-c", "import time; time.sleep(60)")
    monkeypatch.setattr(gpu, "LIMIT_S", 0.8)
    monkeypatch.setattr(
        gpu, "PARTS", tuple(Part(name, limit, hangs) for name, limit in (("a", 0.3), ("b", 9), ("c", 9)))
    )
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        gpu.main()
    written = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [part["exit_code"] for part in written] == [None] * 3
    seconds = [part["seconds"] for part in written]
    assert seconds[0] >= 0.3 and 0.7 <= sum(seconds) < 5 and seconds[2] < seconds[1]
    assert "c: import time; time.sleep(60); at most 0 s" in capsys.readouterr().out


def test_a_machine_without_a_gpu_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.gpu"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "torch finds no CUDA device; --quick tries the parts without one" in capsys.readouterr().err
