import json
import re
import sys
from pathlib import Path

import pytest

from bench import gpu
from bench.gpu import PARTS, Part


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


def test_the_parts_take_less_than_eight_minutes() -> None:
    assert sum(part.limit_s for part in PARTS) <= 450


def test_a_machine_without_a_gpu_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.gpu"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "torch finds no CUDA device; --quick tries the parts without one" in capsys.readouterr().err
