"""Where the time of a step goes."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.step.__main__ import table
from bench.step.learner import head, spent
from bench.step.ranks import Communication, shares
from bench.step.ray_run import IDLE, PHASE, of_run


def test_kernels_and_the_rest_add_up_to_the_whole() -> None:
    matrix = torch.randn(64, 64)
    found = spent(lambda: (matrix @ matrix).exp().sum(), repeats=3)
    whole = found.pop("all")
    assert sum(found.values()) == pytest.approx(whole) and whole > 0
    assert {"matrix products", "other operations", "Python and dispatch"} <= found.keys()
    assert found["matrix products"] > 0


@pytest.mark.parametrize("trains", [False, True])
def test_the_head_is_timed_on_what_went_into_it(trains: bool) -> None:
    class Head(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor, rows: int) -> SimpleNamespace:  # type: ignore[override]
            seen.append((hidden.detach().clone(), rows, torch.is_grad_enabled(), hidden.requires_grad))
            return SimpleNamespace(log_probs=super().forward(hidden).sum(-1))

    seen: list[tuple[torch.Tensor, int, bool, bool]] = []
    module, passes = Head(4, 3), [(torch.randn(5, 4), 5), (torch.randn(2, 4), 2)]
    policy = SimpleNamespace(model=SimpleNamespace(lm_head=module))
    learner: Any = SimpleNamespace(_engine=SimpleNamespace(policy=policy))
    assert head(learner, lambda: [module(*given) for given in passes], trains, repeats=2) > 0
    assert len(seen) == 2 * (1 + 1 + 2)  # the call itself, a first pass that does not count, and two that do
    for at, (hidden, rows, grad, needs_grad) in enumerate(seen[2:]):
        assert (hidden == passes[at % 2][0]).all() and rows == passes[at % 2][1]
        assert grad is trains and needs_grad is trains
    assert module.weight.grad is None


def test_communication_is_told_from_the_rest() -> None:
    class Module:
        def all_reduce(self, seconds: float) -> None:
            time.sleep(seconds)

        reduce = broadcast = all_gather = all_gather_into_tensor = reduce_scatter_tensor = all_reduce

    module, spent = Module(), Communication()
    spent.watch(module)

    def call() -> None:
        module.all_reduce(0.02)
        module.broadcast(0.02)
        time.sleep(0.01)

    found = shares(call, spent, repeats=2)
    whole, gloo, rest, calls = found.values()
    assert gloo >= 40 and rest >= 10 and calls == 2
    assert whole == pytest.approx(gloo + rest, rel=0.1)


def test_phases_are_medians_and_what_no_process_works_on_is_ray_s(tmp_path: Path) -> None:
    """Four steps of 10 s from 0 on, each with an update of 6 s and a publication of 4; the first does not count."""

    def write(lane: str, *spans: tuple[str, float, float], **labels: str) -> None:
        lines = [json.dumps({"name": name, "start_s": a, "end_s": b, **labels}) + "\n" for name, a, b in spans]
        (tmp_path / "logs" / f"{lane}.spans.jsonl").write_text("".join(lines))

    (tmp_path / "logs").mkdir()
    steps = [{"stage": "rl", "step": i, "time/update_s": s, "time/sync_s": 4.0} for i, s in enumerate((9, 6, 6, 7))]
    other = [{"stage": "sft", "step": 1, "time/update_s": 70.0}, {"stage": "rl", "step": 4, "time/evaluate_s": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*other, *steps)))
    spans = [span for i in range(4) for span in (("update", 10 * i, 10 * i + 6), ("sync", 10 * i + 6, 10 * i + 10))]
    write("controller", ("sync", -5, 0), *spans, stage="rl")
    write("learner_0", *(("update", 10 * i + 1, 10 * i + 5 - i) for i in range(4)))
    write("learner_1", *(("update", 10 * i + 2, 10 * i + 4) for i in range(4)))
    write("rollout_0", ("load_weights", 16, 20), ("load_weights", 26, 30), ("load_weights", 36, 38))
    found = of_run(tmp_path)
    assert found["update"] == {PHASE: 6000.0, IDLE: pytest.approx(1000 * (6 - 3 + 6 - 3 + 6 - 3) / 3)}
    assert found["sync"] == {PHASE: 4000.0, IDLE: pytest.approx(2000 / 3)}
    assert found.keys() == {"update", "sync"}


def test_a_table_shows_earlier_figures_before_new_ones() -> None:
    now = {"scoring": {"all": 112.04, "gloo": 3.0}, "update": {"all": 74.0}}
    assert table(now, {"scoring": {"all": 318.0}}).splitlines() == [
        "| ms | scoring | update |",
        "|---|---|---|",
        "| all | 318.0 → 112.0 | 74.0 |",
        "| gloo | 3.0 |  |",
    ]
