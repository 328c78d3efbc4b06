"""Goals of a weight publication: what is compared with which limit."""

from typing import Any

import pytest

from bench.publish import GOALS, judge, table

MIB = 2**20


def run(seconds: float, messages: int, learner: int, engine: int) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "message_bytes": messages,
        "learner_grew": learner * MIB,
        "engine_grew": engine * MIB,
    }


def test_the_first_publication_is_left_out_and_the_worst_of_the_others_counts() -> None:
    connecting = run(100.0, 10**9, 4000, 4000)
    good = [connecting, run(0.2, 500_000, 100, 120), run(0.3, 900_000, 128, 100), run(9.0, 400_000, 100, 100)]
    bad = [connecting, run(0.4, 2_000_000, 100, 300), run(0.5, 1, 1, 1), run(0.6, 1, 1, 1)]
    found = {
        "bytes": 10**9,
        "largest_tensor": 64 * MIB,
        "largest_bucket": 128 * MIB,
        "first": {"alike": 3, "of": 3, "engine_reads_s": 0.2},
        "copy_s": [0.1, 0.1, 0.2],
        "transfers": {"broadcast": good, "shared_memory": bad, "files": bad},
    }
    verdicts = judge(found)
    assert [v["transfer"] for v in verdicts] == ["broadcast"] * len(GOALS) + ["shared_memory"] * len(GOALS)
    assert [v["value"] for v in verdicts] == pytest.approx([0.9, 1.0, 3.0, 2.0, 300 / 128, 5.0])
    assert [v["status"] for v in verdicts] == ["met"] * 3 + ["missed"] * 3
    assert "| broadcast | 0.30 | 3.0 | 0.50 | 128 | 120 |" in table(found)
