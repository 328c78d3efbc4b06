from argparse import Namespace
from pathlib import Path

import pytest

from bench.shared_prompts import Bench, Shape
from tests.unit.planning.test_passes import measured


def test_a_shared_update_holds_what_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    bench = Bench(tmp_path, Namespace(hidden=64, layers=2), cuda=False)
    update = bench._update

    def watched(policy, parts, records) -> None:  # type: ignore[no-untyped-def]
        if policy is bench.policy and len(parts) == 1:
            held.append(measured(lambda: update(policy, parts, records)))
        else:
            update(policy, parts, records)

    monkeypatch.setattr(bench, "_update", watched)
    found = bench.measure(Shape(200, 40, 4), 1)
    weights = sum(p.nbytes for p in bench.policy.parameters())
    assert 2**30 * found["planned_gib"] - weights == pytest.approx(held[-1], rel=0.1)
    assert 2**30 * found["planned_gib"] > 2 * weights  # gradients are held until the end
