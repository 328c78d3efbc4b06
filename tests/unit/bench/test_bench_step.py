"""Where the time of a step goes."""

import json
from pathlib import Path

import torch

from bench.step import phases, spent


def test_kernels_and_the_rest_add_up_to_the_whole() -> None:
    matrix = torch.randn(64, 64)
    found = spent(lambda: (matrix @ matrix).exp().sum(), repeats=3)
    whole = found.pop("all")
    assert sum(found.values()) == whole > 0
    assert {"matrix products", "other operations", "Python and dispatch"} <= found.keys()
    assert found["matrix products"] > 0


def test_phases_are_medians_of_rl_steps(tmp_path: Path) -> None:
    def row(stage: str, **seconds: float) -> str:
        return json.dumps({"stage": stage, "step": 1, **{f"time/{name}_s": s for name, s in seconds.items()}}) + "\n"

    steps = [row("rl", update=u, rollout=0.5) for u in (0.1, 0.2, 0.9)]
    (tmp_path / "metrics.jsonl").write_text(row("sft", update=7.0) + "".join(steps) + row("rl", evaluate=1.0))
    assert phases(tmp_path) == {"rollout": 500.0, "update": 200.0}
