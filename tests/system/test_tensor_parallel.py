"""A rollout engine of two ranks, in one actor of a placement group as a run has it."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ral_system.actors.ending import GRACE_S
from ral_system.actors.group import Call, Member, stream, wait_all
from ral_system.actors.placement import Bundle, release, reserve
from ral_system.actors.rollout import RolloutActor
from ral_system.actors.silent import where_they_hang
from ral_system.data.chat import ChatRenderer
from ral_system.endings import end_marked, mark
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family, load_model
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import VisualSearch, words
from ral_system.types import Completion, Piece, Prompt, Sampling
from ral_system.weights.manifest import verify_loaded
from ral_system.weights.transfer.object_store import ObjectStore
from ral_system.weights.transfer.transfer import Setting
from tests.composed import compose_config
from tests.offered import offered

pytestmark = [pytest.mark.system, pytest.mark.timeout(600), pytest.mark.long]


CONFIG = compose_config("experiment=smoke", "rollout.tensor_parallel=2", "cluster.cpus_per_rollout=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    build_tiny_model(folder / "start", words(), hidden=64, layers=2, vision_layers=1, seed=1)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Member]:
    # GPUs in name only, so Ray deals them out as it does real ones; vLLM runs on the CPU.
    ray.init(num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False)
    learner = Bundle("learner", 0, 0.125, 1)  # its bundle comes first, and the engine must leave it alone
    group = reserve([learner, Bundle("rollout", 0, 1, 2)], 60, nodes_may_join=False, tell=print)
    environment = vllm_environment(CONFIG.rollout, CONFIG.cluster.threads_per_process, "cpu")
    environment |= mark("engine", "rollout 0")
    log = folder / "logs" / "rollout_0.log"
    handle = (
        ray.remote(concurrency_groups=RolloutActor.THREADS)(RolloutActor)
        .options(
            num_cpus=1,
            num_gpus=2,
            runtime_env={"env_vars": environment},
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, 1),
        )
        .remote("rollout 0", log)
    )
    member = Member(handle, "rollout", 0, log, ray.get_runtime_context().get_node_id())
    try:
        transfer = {"transfer": ObjectStore, "setting": Setting.of_one_process()}
        folders = folder / "start", folder / "media"
        built = handle.build.remote(CONFIG.rollout, CONFIG.cluster, *folders, seed=CONFIG.seed, **transfer)
        wait_all([Call(member, built)], 300, "starting")
        yield member
    finally:
        print(log.read_text()[-3000:])
        ray.kill(handle)
        release(group)
        ray.shutdown()


def test_two_ranks_generate_and_take_new_weights(engine: Member, folder: Path) -> None:
    renderer, media = ChatRenderer(load_family(folder / "start"), "answer"), MediaStore(folder / "media")
    record = VisualSearch(seed=0, grid=2, objects=3).record("train", 0)
    image = media.put(record.image)
    prompt = renderer.prompt(id="t0", kind="", question=record.question, answer=record.answer, media=[image])
    before = generate(engine, prompt)
    model = load_model(folder / "start", dtype="float32")
    for parameter in model.parameters():
        parameter.data.add_(0.01)
    weights = offered(1, model.state_dict())
    (held,) = wait_all([Call(engine, engine.handle.load_weights.remote(weights))], 120, "loading")
    verify_loaded(weights.manifest, held)
    after = generate(engine, prompt)
    assert {c.weight_version for c in before} == {0}
    assert {c.weight_version for c in after} == {1}
    assert [c.log_probs for c in before] != [c.log_probs for c in after]


def generate(engine: Member, prompt: Prompt) -> list[Completion]:
    sampling = Sampling(completions=4, temperature=1.0, max_new_tokens=12, seed=3)
    call = Call(engine, engine.handle.generate.remote([Piece(prompt, 0, sampling.completions)], sampling))
    found = sorted((c for batch in stream([call], 120, "generating") for c in batch), key=lambda c: c.index)
    assert [c.index for c in found] == [0, 1, 2, 3]
    return found


def test_the_ranks_see_the_devices_of_their_actor_write_their_stacks_and_end_with_it(engine: Member) -> None:
    (pid,) = wait_all([Call(engine, engine.handle.pid.remote())], 30, "testing")
    ranks = [p for p in psutil.Process(pid).children(recursive=True) if "VLLM::Worker" in " ".join(p.cmdline())]
    assert len(ranks) == 2
    (devices,) = {rank.environ()["CUDA_VISIBLE_DEVICES"] for rank in ranks}
    assert len(devices.split(",")) == 2
    assert where_they_hang([(engine.node, engine.log)])[0].startswith(
        "no method of it is running; the stacks of its threads"
    )
    assert engine.log.read_text().count("in worker_busy_loop") == 2  # in each rank
    ray.kill(engine.handle)
    assert end_marked("engine", GRACE_S, 20) == []  # by themselves, before a run would kill them
    assert not [rank for rank in ranks if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]
