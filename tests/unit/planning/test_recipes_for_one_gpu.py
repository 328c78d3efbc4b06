"""The recipes for one GPU, at their models' sizes: whether they fit the GPU that they are for, as documented."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ral_system.planning.memory import gib
from ral_system.planning.plan import Plan
from tests.unit.planning.models import planned, write_3b, write_7b

pytestmark = pytest.mark.long  # 20 s of CPU time each

PAGE = Path(__file__).parents[3] / "docs" / "cluster.md"


def needs(plan: Plan) -> str:
    """The last cells of a row in the documentation's tables: memory of a GPU and of a node, a step, all stages."""
    sizes = gib(max(plan.shared.values())), gib(plan.host.total())
    return f"{' | '.join(sizes)} | {plan.step_s:.3g} s | {plan.all_s / 3600:.3g} h |"


@pytest.mark.parametrize(("size", "write", "billions"), [("3b", write_3b, 3.75), ("7b", write_7b, 8.29)])
def test_a_recipe_fits_an_h100(
    size: str, write: Callable[[Path, Path], Path], billions: float, tiny_model: Path, tmp_path: Path
) -> None:
    plan, config = planned(
        write(tmp_path / "model", tiny_model), f"experiment=ral_qwen2_5_vl_{size}_1gpu", "plan.device=h100"
    )
    assert not plan.problems
    learner, engine = plan.roles  # the learner without adapters is the reference
    assert config.cluster.placement == "colocated" and config.learner.lora is not None
    assert engine.device["weights"] == pytest.approx(2e9 * billions, rel=0.01)
    assert learner.device["optimiser"] < learner.device["weights"] / 4
    assert plan.device.bytes > max(plan.shared.values()) > learner.device["weights"]
    assert plan.device.node_bytes == int(0.95 * 1740 / 8 * 2**30)  # of a node with this GPU alone
    assert f"| `ral_qwen2_5_vl_{size}_1gpu` | {needs(plan)}\n" in PAGE.read_text()
