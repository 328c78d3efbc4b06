"""Commands and figures of docs/cluster.md: runs that are legal, fit their machines, and need what the page says."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ral_system.actors.placement import devices, joined, plan, preflight, reserved_together
from ral_system.config.commands import PlanCommandConfig, TrainConfig
from ral_system.planning.memory import gib
from ral_system.planning.plan import Plan
from tests.composed import compose_config
from tests.unit.planning.models import planned, write_3b, write_7b

PAGE = (Path(__file__).parents[3] / "docs" / "cluster.md").read_text()
CODE = "\n".join(re.findall("^    (.*)", PAGE, re.MULTILINE)).replace("\\\n", " ")
KINDS = {"ral-train": TrainConfig, "ral-plan": PlanCommandConfig}
COMMANDS = [shlex.split(found) for found in re.findall(r"\bral-(?:train|plan) [^#…\n]*experiment=[^#…\n]*", CODE)]


def on_nodes(count: int) -> list[str]:
    """The overrides of the page's command for as many nodes of eight GPUs."""
    (found,) = (command[1:] for command in COMMANDS if f"learner.world_size={8 * count}" in command)
    return found


def needs(of: Plan) -> str:
    """The last cells of a row in the page's tables: memory of a GPU and of a node, a step, all stages."""
    sizes = gib(max(of.shared.values())), gib(of.host.total())
    return f"{' | '.join(sizes)} | {of.step_s:.3g} s | {of.all_s / 3600:.3g} h |\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_documented_command_is_legal(command: list[str]) -> None:
    assert compose_config(*command[1:], kind=KINDS[command[0]]).cluster.kind == "ray"


def test_every_command_of_the_page_is_tried() -> None:
    assert len(COMMANDS) == len(re.findall(r"^ .*\bral-(?:train|plan) experiment=", PAGE, re.MULTILINE)) > 5


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_run_on_several_nodes_fills_their_gpus_and_fits_their_cores(count: int) -> None:
    for cores, overrides in ((128.0, ()), (96.0, ("cluster.cpus_per_scorer=2",))):
        config = compose_config(*on_nodes(count), *overrides)
        assert config.algorithm.prompts_per_step * config.algorithm.steps == 51200
        bundles = plan(config.cluster, config.rollout, config.learner, "rl", reference=True, teachers=0)
        assert devices(bundles) == 8 * count
        places = [joined([bundles[at] for at in together]) for together in reserved_together(bundles)]
        preflight(places, [{"CPU": cores, "GPU": 8.0}] * count)


@pytest.mark.long  # 20 s of CPU time each
@pytest.mark.parametrize("count", [2, 8])
def test_a_run_on_several_nodes_needs_what_the_page_says(count: int, tiny_model: Path, tmp_path: Path) -> None:
    model = write_7b(tmp_path / "model", tiny_model)
    of, config = planned(model, *on_nodes(count), f"model.path={model}", "plan.device=h100")
    assert not of.problems
    assert f"| {count} | {config.algorithm.prompts_per_step} | {needs(of)}" in PAGE


@pytest.mark.long
@pytest.mark.parametrize(("size", "write", "billions"), [("3b", write_3b, 3.75), ("7b", write_7b, 8.29)])
def test_a_recipe_for_one_gpu_fits_an_h100(
    size: str, write: Callable[[Path, Path], Path], billions: float, tiny_model: Path, tmp_path: Path
) -> None:
    of, config = planned(
        write(tmp_path / "model", tiny_model), f"experiment=ral_qwen2_5_vl_{size}_1gpu", "plan.device=h100"
    )
    assert not of.problems
    learner, engine = of.roles  # the learner without adapters is the reference
    assert config.cluster.placement == "colocated" and config.learner.lora is not None
    assert engine.device["weights"] == pytest.approx(2e9 * billions, rel=0.01)
    assert learner.device["optimiser"] < learner.device["weights"] / 4
    assert of.device.bytes > max(of.shared.values()) > learner.device["weights"]
    assert of.device.node_bytes == int(0.95 * 1740 / 8 * 2**30)  # of a node with this GPU alone
    assert f"| `ral_qwen2_5_vl_{size}_1gpu` | {needs(of)}" in PAGE
