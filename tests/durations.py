"""What tests cost in CPU seconds: recorded by pytest, and compared with what is committed.

`make durations` runs both suites with `--durations-json=FILE`, then this module, which prints what grew. Wall time on a
busy machine says little. CPU seconds are those of a test, its fixtures, and the processes that it waited for; what a
server does for it is not counted.
"""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

COMMITTED = Path(__file__).parents[1] / "docs" / "benchmarks" / "tests.json"
GREW_S, GREW_BY = 1.0, 1.3
"""A file is named if its tests take so many CPU seconds more, and so many times as many."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--durations-json", metavar="FILE", help="write CPU and wall seconds of each file's tests to FILE")


def pytest_configure(config: pytest.Config) -> None:
    if (file := config.getoption("--durations-json")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Record(Path(file)))


def _measured(item: pytest.Item) -> Iterator[Any]:
    before = _cpu_s()
    try:
        return (yield)
    finally:
        item.user_properties.append(("cpu_s", _cpu_s() - before))


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(_measured)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(_measured)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[Any]:
    return (yield from _measured(item))


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


class _Record:
    """Seconds of each test file, written when all have run."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tests: Counter[str] = Counter()
        self._cpu_s: Counter[str] = Counter()
        self._wall_s: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[0]
        self._wall_s[name] += report.duration
        if report.when == "teardown":  # whose report has the seconds of all three phases
            self._tests[name] += 1
            self._cpu_s[name] += sum(float(s) for key, s in report.user_properties if key == "cpu_s")

    def pytest_sessionfinish(self) -> None:
        found = {
            name: {"tests": count, "cpu_s": round(self._cpu_s[name], 1), "wall_s": round(self._wall_s[name], 1)}
            for name, count in sorted(self._tests.items())
        }
        self._file.write_text(json.dumps(found, indent=1) + "\n")


def grown(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each file whose tests take more CPU seconds than before, the largest growth first."""
    pairs = [(name, before.get(name, {"cpu_s": 0.0})["cpu_s"], found["cpu_s"]) for name, found in now.items()]
    more = [pair for pair in pairs if pair[2] > pair[1] + GREW_S and pair[2] > pair[1] * GREW_BY]
    return [f"{b:7.1f} -> {n:7.1f} CPU s  {name}" for name, b, n in sorted(more, key=lambda pair: pair[1] - pair[2])]


def main(*files: str) -> None:
    """Compare what was recorded in `files` with the committed figures; print what grew, and the sums."""
    now = {name: found for file in files for name, found in json.loads(Path(file).read_text()).items()}
    before = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {}
    print("\n".join(grown(before, now) or ["no file's tests take noticeably more CPU seconds"]))
    for suite in ("tests/unit", "tests/system"):
        sums = [sum(f["cpu_s"] for name, f in table.items() if name.startswith(suite)) for table in (before, now)]
        print(f"{suite}: {sums[0]:.0f} -> {sums[1]:.0f} CPU s")
    print(f"to commit the new figures: python -m tests.durations --write {' '.join(files)}")


if __name__ == "__main__":
    if sys.argv[1] == "--write":
        merged = {name: f for file in sys.argv[2:] for name, f in json.loads(Path(file).read_text()).items()}
        COMMITTED.write_text(json.dumps(merged, indent=1) + "\n")
    else:
        main(*sys.argv[1:])
