"""Goals of a weight publication: what is compared with which limit."""

from typing import Any

import pytest

from bench.publish import GOALS, judge, table

MIB = 2**20


def run(watched: bool, seconds: float, messages: int, learner: int, engine: int) -> dict[str, Any]:
    return {
        "copy_s": 0.1 if watched else 0.2,
        "both_copy_s": 0.3,
        "watched": watched,
        "seconds": seconds,
        "message_bytes": messages,
        "learner_grew": learner * MIB,
        "engine_grew": engine * MIB,
    }


def test_seconds_are_those_of_later_publications_and_memory_that_of_the_worst() -> None:
    connecting = run(True, 100.0, 10**9, 128, 4)
    timed = [run(False, seconds, 500_000, 0, 0) for seconds in (0.2, 0.3, 9.0)]
    good = [connecting, *timed, run(True, 50.0, 900_000, 1, 100), run(True, 60.0, 400_000, 100, 120)]
    bad = [connecting, run(False, 0.5, 2_000_000, 0, 0), run(True, 0.1, 1, 100, 300)]
    found = {
        "bytes": 10**9,
        "largest_tensor": 128 * MIB,
        "first": {"alike": 3, "of": 3, "engine_reads_s": 0.2},
        "gloo_alone_s": [0.4, 0.3, 0.5],
        "transfers": {"broadcast": good, "shared_memory": bad, "files": bad},
    }
    verdicts = judge(found)
    assert [v["transfer"] for v in verdicts] == ["broadcast"] * len(GOALS) + ["shared_memory"] * len(GOALS)
    assert [v["value"] for v in verdicts] == pytest.approx([0.9, 1.0, 0.3 / 0.15, 2.0, 300 / 128, 5.0])
    assert [v["status"] for v in verdicts] == ["met"] * 3 + ["missed"] * 3
    assert "| broadcast | 0.20 | 2.0 | 0.30 | 2.0 | 0.90 | 128 | 120 |" in table(found)
    assert "two copies at once 0.30 (0.30 to 0.30); gloo alone 0.40 (0.30 to 0.50)" in table(found)
