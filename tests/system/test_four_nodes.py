"""Four nodes of eight pretended GPUs, all on this machine: how a run waits for them, and where everything is placed.

Nodes differ as machines do: in their address, in their home folder, and the last one in what lies under the run
folder's path.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from ral_system.actors import placement
from ral_system.actors.nodes import nodes_of
from ral_system.actors.placement import plan, release, reserve
from ral_system.actors.roles import RayRoles
from ral_system.config.commands import TrainConfig
from ral_system.errors import SetupError
from ral_system.models.staging import ModelCopy
from ral_system.types import Prompt, Sampling
from tests.composed import compose_config
from tests.system.pretended_run import start
from tests.unit.models.hub_cache import put_in_cache

pytestmark = [pytest.mark.system, pytest.mark.long]  # Ray gives a node 30 s to start, too few beside other tests

NODES, GPUS = 4, 8
PROCESSES = {"learner": 16, "rollout": 15, "reference": 1}
HERE = Path("/proc/self/cwd")
"""A path that every process has, and that is not the same folder for all of them."""
CPUS = [f"cluster.cpus_per_{role}=0.01" for role in ("learner", "rollout", "scorer", "reward")]


def address(at: int) -> str:
    return f"127.0.0.{at + 2}"


@dataclass
class Four:
    """A cluster whose nodes with GPUs join one by one."""

    cluster: Cluster
    head: str
    folder: Path
    nodes: list[str] = field(default_factory=list)

    def join(self) -> None:
        """Add the next node; the last one has another working folder."""
        at = len(self.nodes)
        home = self.home(at)
        home.mkdir(exist_ok=True)
        before = {node["NodeID"] for node in ray.nodes()}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder / ("elsewhere" if at == NODES - 1 else "shared"))
            patch.delenv("HF_HOME", raising=False)
            self.cluster.add_node(
                num_cpus=1,
                num_gpus=GPUS,
                node_ip_address=address(at),
                env_vars={"HOME": str(home), "HF_HUB_OFFLINE": "1"},
            )
        (added,) = {node["NodeID"] for node in ray.nodes()} - before
        self.nodes.append(added)

    def complete(self) -> None:
        while len(self.nodes) < NODES:
            self.join()

    def home(self, at: int) -> Path:
        return self.folder / f"home_{at}"


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Four]:
    folder = tmp_path_factory.mktemp("four")
    for name in ("shared", "elsewhere"):
        (folder / name).mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    yield Four(cluster, ray.nodes()[0]["NodeManagerAddress"], folder)
    ray.shutdown()
    cluster.shutdown()


def of_four_nodes(*overrides: str) -> TrainConfig:
    """A configuration that fills the four nodes."""
    gpus = ("cluster.gpus_per_learner=1", "cluster.gpus_per_scorer=1", "learner.world_size=16")
    return compose_config(*CPUS, *gpus, *overrides)


def test_a_run_waits_for_all_nodes_and_says_who_is_there(four: Four, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_FIRST_WORD_S", 0.5)
    monkeypatch.setattr(placement, "_REPEAT_S", 0.5)
    said: list[str] = []

    def hear(line: str) -> None:
        said.append(line)
        if len(four.nodes) < NODES:
            four.join()

    engines = ("rollout.workers=7", "rollout.tensor_parallel=2", "cluster.gpus_per_rollout=2", "cluster.scorers=2")
    config = of_four_nodes(*engines)
    bundles = plan(config.cluster, config.rollout, config.learner, "rl", reference=True, teachers=0)
    group = reserve(bundles, 120.0, nodes_may_join=True, tell=hear)
    nodes = nodes_of(group)
    release(group)
    assert len(said) >= NODES
    wanted = "the run needs 32 GPUs (learner 16 x 1, rollout 7 x 2, reference 2 x 1)"
    for joined, line in enumerate(said[:NODES]):
        assert f": {wanted}, the cluster has {GPUS * joined} GPUs on {1 + joined} node(s); joined: " in line
        there = set(line.partition("joined: ")[2].split(", "))
        assert there - {four.head} == {address(at) for at in range(joined)}
    # An engine's two GPUs are one bundle, so they are on one node; every GPU of the cluster is in use.
    used = Counter[str]()
    for node, bundle in zip(nodes, bundles, strict=True):
        used[node] += int(bundle.gpus)
    assert {node: used[node] for node in four.nodes} == dict.fromkeys(four.nodes, GPUS)


def test_fifteen_engines_beside_sixteen_learners_share_the_prompts(
    four: Four,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    marked: Callable[[str], dict[int, str]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each node has the model in the cache of its own home folder, and nowhere else."""
    four.complete()
    chosen = put_in_cache(tmp_path / "driver")
    copy = ModelCopy.of(chosen)
    monkeypatch.setattr(ModelCopy, "of", lambda folder: copy)
    shutil.move(tmp_path / "driver", tmp_path / "elsewhere")  # the nodes share this disk
    own = {node: put_in_cache(four.home(at) / ".cache" / "huggingface") for at, node in enumerate(four.nodes)}
    config = of_four_nodes("rollout.workers=15", "cluster.gpus_per_rollout=1")
    started = start(config, chosen, tmp_path / "run", "rollout")
    try:
        places = ray.get([member.handle.place.remote() for member in started.members])
        prompts = [Prompt(f"p{i}", "kind", "", "", (), (1,) * (10 + i % 3)) for i in range(32)]
        made: list[Any] = list(
            started.generator.generate(prompts, Sampling(8, temperature=1.0, max_new_tokens=64, seed=0))
        )
    finally:
        started.close()
    assert not marked(started._mark)
    assert "warning: " not in capfd.readouterr().err  # of nodes that could not be asked

    nodes = {role: [started._nodes[f"{role} {rank}"] for rank in range(n)] for role, n in PROCESSES.items()}
    assert [place.node for place in places] == nodes["rollout"]
    assert len({(place.node, *place.gpus) for place in places}) == 15
    assert Counter(node for of_role in nodes.values() for node in of_role) == dict.fromkeys(four.nodes, GPUS)
    for of_role in nodes.values():  # neighbouring ranks lie on one node wherever they can
        assert len(list(groupby(of_role))) == len(set(of_role))
    for role, of_role in nodes.items():
        found = [started._folders[f"{role} {rank}"][chosen] for rank in range(len(of_role))]
        assert found == [own[node] for node in of_role]

    assert sorted((id, index) for _, id, index in made) == sorted((p.id, i) for p in prompts for i in range(8))
    shares = Counter(place for place, _, _ in made)
    assert shares.keys() == set(places)
    assert max(shares.values()) <= 4 / 3 * len(made) / len(shares)  # the bound of dealing the longest piece first


def test_a_teacher_has_all_its_gpus_on_one_node(four: Four, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four.complete()
    monkeypatch.setattr("ral_system.actors.roles.stage_models", lambda nodes, models, *_: [{} for _ in nodes])
    models = put_in_cache(tmp_path / "one"), put_in_cache(tmp_path / "other")
    teachers = (f"teacher.path={models[0]}", f"teacher.attention_path={models[1]}", "cluster.gpus_per_teacher=3")
    engines = ("rollout.workers=5", "cluster.gpus_per_rollout=1", "cluster.cpus_per_teacher=0.01")
    config = of_four_nodes("algorithm=attention_distill", *teachers, *engines)
    started = start(config, models[0], tmp_path / "run", "teacher")
    try:
        places = ray.get([member.handle.place.remote() for member in started.members])
        monkeypatch.setattr(RayRoles, "_at", lambda started, member, folder: folder)
        built = ray.get([call.ref for call in started._build_frozen(models[0], tmp_path / "media")])
    finally:
        started.close()
    assert [(place.node, len(set(place.gpus))) for place in places] == [
        (started._nodes[f"teacher {rank}"], 3) for rank in range(2)
    ]
    assert len({(place.node, gpu) for place in places for gpu in place.gpus}) == 6
    assert built == [3, 3]


def test_a_node_with_another_disk_under_the_path_of_the_run_is_named(
    four: Four, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four.complete()
    monkeypatch.chdir(four.folder / "shared")
    config = of_four_nodes("rollout.workers=15", "cluster.gpus_per_rollout=1")
    with pytest.raises(SetupError, match=rf"^node {address(NODES - 1)} does not see the run folder {HERE}/run of "):
        start(config, put_in_cache(tmp_path), HERE / "run", "rollout")
    assert (four.folder / "shared" / "run").is_dir() and not (four.folder / "elsewhere" / "run").exists()


def test_a_node_that_lacks_the_pictures_of_the_data_is_named(
    four: Four, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four.complete()
    monkeypatch.chdir(four.folder / "shared")
    Image.new("RGB", (28, 28)).save("picture.png")
    link = tmp_path / "run" / "media" / "00" / "00.image"
    link.parent.mkdir(parents=True)
    link.symlink_to(HERE / "picture.png")
    config = of_four_nodes("rollout.workers=15", "cluster.gpus_per_rollout=1")
    with pytest.raises(
        SetupError, match=rf"^node {address(NODES - 1)} cannot read {HERE}/picture.png, a picture or video of data"
    ):
        start(config, put_in_cache(tmp_path), tmp_path / "run")
