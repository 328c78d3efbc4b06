"""Commands and figures of docs/cluster.md: runs that are legal, fit their machines, and need what the page says."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ral_system.actors.placement import devices, joined, plan, preflight, reserved_together
from ral_system.config.cluster import RayClusterConfig
from ral_system.config.commands import PlanCommandConfig, TrainConfig
from ral_system.planning.host import fullest, reserved_cores
from ral_system.planning.memory import Role, gib
from ral_system.planning.plan import Plan
from tests.composed import compose_config
from tests.unit.launch.kuberay_file import FILE, Worker, ray_job
from tests.unit.planning.models import planned, write_3b, write_7b

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "cluster.md").read_text()
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


def slurm_option(script: str, name: str) -> float:
    """Return a number that a Slurm script requests."""
    text = (FILE.parent / script).read_text()
    (found,) = re.findall(rf"^#SBATCH --{name}=(\d+)", text, re.MULTILINE)
    return float(found)


def cores_on_nodes(config: TrainConfig) -> list[dict[str, float]]:
    """Return the cores that `ral-plan` prints, without planning passes."""
    cluster = config.cluster
    assert isinstance(cluster, RayClusterConfig)
    sizes = {
        "learner": (config.learner.world_size, cluster.gpus_per_learner),
        "rollout": (config.rollout.workers, cluster.gpus_per_rollout),
        "reference": (cluster.scorers if config.starts_reference else 0, cluster.gpus_per_scorer),
    } | ({"teacher": (len(config.teachers), cluster.gpus_per_teacher)} if config.teachers else {})
    roles = [Role(name, *size, {}, {}, {}) for name, size in sizes.items()]
    return reserved_cores(roles, cluster, node_gpus=8, shared=cluster.placement == "colocated")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_documented_run_fits_the_shipped_files_for_clusters(command: list[str]) -> None:
    """The cores that a pod of kuberay.yaml has, and a task of slurm.sbatch; `ral-plan` counts what Ray reserves."""
    config = compose_config(*command[1:], kind=KINDS[command[0]])
    assert isinstance(config.cluster, RayClusterConfig)
    reference, teachers = config.starts_reference, len(config.teachers)
    bundles = plan(config.cluster, config.rollout, config.learner, "rl", reference=reference, teachers=teachers)
    nodes = cores_on_nodes(config)
    assert sum(sum(node.values()) for node in nodes) == sum(bundle.cpus for bundle in bundles)
    one_gpu = devices(bundles) == 1
    worker = Worker.of(ray_job(one_gpu=one_gpu))
    slurm = slurm_option("slurm-1gpu.sbatch" if one_gpu else "slurm.sbatch", "cpus-per-task")
    places = [joined([bundles[at] for at in together]) for together in reserved_together(bundles)]
    for cores in (worker.cores, slurm):
        assert sum(fullest(nodes).values()) <= cores
        preflight(places, [{"CPU": cores, "GPU": float(worker.gpus)}] * len(nodes))


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_run_on_several_nodes_fills_their_gpus(count: int) -> None:
    config = compose_config(*on_nodes(count))
    assert config.algorithm.prompts_per_step * config.algorithm.steps == 51200
    bundles = plan(config.cluster, config.rollout, config.learner, "rl", reference=True, teachers=0)
    assert devices(bundles) == 8 * count
    nodes = cores_on_nodes(config)
    assert len(nodes) == count
    assert f"| {count} | {sum(fullest(nodes).values()):g} | {sum(sum(n.values()) for n in nodes):g} |\n" in PAGE


def test_the_size_of_a_pod_is_given_as_ral_plan_takes_it() -> None:
    cores, memory = Worker.of(ray_job()).overrides
    assert f"{cores}, and {memory}," in FILE.read_text() and f"{cores} {memory}" in PAGE


@pytest.mark.long  # 20 s of CPU time each
@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_run_on_several_nodes_needs_what_the_page_says(count: int, tiny_model: Path, tmp_path: Path) -> None:
    model = write_7b(tmp_path / "model", tiny_model)
    pod = Worker.of(ray_job()).overrides
    of, config = planned(model, *on_nodes(count), f"model.path={model}", "plan.device=h100", *pod)
    assert not of.problems
    assert [*of.cores] == cores_on_nodes(config)
    if count > 1:
        assert f"| {count} | {config.algorithm.prompts_per_step} | {needs(of)}" in PAGE


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "write", "gpu_gib", "max_tokens"),
    [("7b", write_7b, 47.4, 32768), ("3b", write_3b, 39.5, 32768), ("3b", write_3b, 23.6, 16384)],
)
def test_a_recipe_fits_a_smaller_gpu(
    size: str, write: Callable[[Path, Path], Path], gpu_gib: float, max_tokens: int, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = (f"experiment=ral_qwen2_5_vl_{size}_1gpu", f"plan.gpu_gib={gpu_gib}", f"learner.max_tokens={max_tokens}")
    of, _ = planned(write(tmp_path / "model", tiny_model), *recipe)
    assert not of.problems
    assert f"{gib(max(of.shared.values()))} of {gib(of.device.usable)} GiB" in PAGE


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
    pod, slurm = Worker.of(ray_job(one_gpu=True)), slurm_option("slurm-1gpu.sbatch", "mem")
    assert of.host.total() + pod.shm_gib * 2**30 < 0.95 * min(pod.memory_gib, slurm) * 2**30
    assert f"| `ral_qwen2_5_vl_{size}_1gpu` | {needs(of)}" in PAGE
