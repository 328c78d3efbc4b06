"""What DeepSpeed's ranks hold of weights, gradients and optimiser: as much as is planned."""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.composed import compose_config
from tests.system.ranks import become_rank, run_ranks

pytestmark = pytest.mark.system

STAGES = {1: (0, 1, 2, 3), 2: (1, 2, 3)}
_BUCKET = 500_000_000


def held() -> int:
    """Bytes of all floating-point tensors, but for DeepSpeed's bucket, which a CPU does not touch as a whole."""
    import torch

    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.is_floating_point():
            storages[thing.untyped_storage()._cdata] = thing.untyped_storage().nbytes()
    return sum(size for size in storages.values() if size < _BUCKET)


def measure(model: Path, rank: int, world_size: int, stage: int) -> tuple[int, int]:
    """Bytes when an update steps, and what was planned for then."""
    from ral_system.config.commands import PlanCommandConfig
    from ral_system.planning.memory import Weights, states
    from ral_system.planning.workload import BlankMedia, step_samples
    from ral_system.training.learner_rank import LearnerRank
    from ral_system.training.plan import plan_updates

    config = compose_config(
        f"learner.world_size={world_size}",
        f"learner.zero_stage={stage}",
        "plan.medium=none",
        "plan.text_tokens=20",
        "plan.response_tokens=6",
        "rollout.log_prob_gate.token=1e9",
        kind=PlanCommandConfig,
    )
    before = held()
    trained = LearnerRank(config, model, BlankMedia(), rank, world_size, "rl")  # type: ignore[arg-type]
    numbers = sum(getattr(p, "ds_numel", p.numel()) for p in trained._engine.policy.parameters())
    samples = step_samples(config, config.plan, trained._engine.policy.family)[:16]
    plan = plan_updates(samples, updates=2, shards=world_size, max_tokens=400)
    scores, found, step = trained.score(plan), [], trained._engine.step

    def counted_step() -> float:
        found.append(held() - before)
        return step()

    trained._engine.step = counted_step  # type: ignore[method-assign]
    for update in plan.updates:
        trained.update(update, scores, scores)
    weights = Weights(numbers, numbers, 4)
    device, _ = states(config.learner, weights, "cpu")
    bucket = weights.bytes if stage else 0  # is given back before the step
    return found[-1], sum(device.values()) - bucket


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.long)])
def test_ranks_hold_what_is_planned(commands: Any, tmp_path: Path, tiny_model: Path, world_size: int) -> None:
    (tmp_path / "model.json").write_text(json.dumps(str(tiny_model)))
    run_ranks(commands, __file__, tmp_path, world_size)
    for stage, (found, planned) in json.loads((tmp_path / "held.json").read_text()).items():
        assert found == pytest.approx(planned, rel=0.1), f"ZeRO {stage}"


if __name__ == "__main__":
    folder, this_rank, ranks, port = Path(sys.argv[1]), *map(int, sys.argv[2:])
    become_rank(this_rank, ranks, port)
    start = Path(json.loads((folder / "model.json").read_text()))
    by_stage = {stage: measure(start, this_rank, ranks, stage) for stage in STAGES[ranks]}
    if this_rank == 0:
        (folder / "held.json").write_text(json.dumps(by_stage))
