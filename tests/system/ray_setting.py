"""What tests of the roles as Ray actors need: models, prompts, and all roles of an rl stage."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import ray

from ral_system.actors.group import Call, Member, wait_all
from ral_system.actors.roles import RayRoles
from ral_system.data.chat import ChatRenderer
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import VisualSearch, words
from ral_system.types import Prompt
from tests.composed import compose_config
from tests.system.troubled_actor import Troubled


def folder_of_models(folder: Path) -> Path:
    """Build a model to start from, and a larger teacher."""
    build_tiny_model(folder / "start", words(), hidden=64, layers=2, vision_layers=1, seed=1)
    build_tiny_model(folder / "larger", words(), hidden=96, layers=3, vision_layers=1, seed=2)
    return folder


def prompts_of(folder: Path) -> list[Prompt]:
    """Generate four questions."""
    renderer, media = ChatRenderer(load_family(folder / "start"), "answer"), MediaStore(folder / "media")
    records = [VisualSearch(seed=0, grid=2, objects=3).record("train", i) for i in range(4)]
    return [
        renderer.prompt(id=f"t{r.index}", kind=r.kind, question=r.question, answer=r.answer, media=[media.put(r.image)])
        for r in records
    ]


def started_roles(folder: Path) -> RayRoles:
    """Start two engines, two learner ranks, two processes of the reference, two teachers and the verifiers."""
    phases: dict[str, float] = {}
    config = compose_config(
        "experiment=smoke",
        "rollout.workers=2",
        "cluster.cpus_per_rollout=0.25",
        "cluster.scorers=2",
        "cluster.cpus_per_scorer=0.0625",
        "algorithm=attention_distill",
        f"teacher.path={folder}/start",
        f"teacher.attention_path={folder}/larger",
        "reward.visual.weight=0.3",
        "algorithm.max_staleness=1",
        "rollout.on_new_weights=continue",
        "learner.collective_timeout_s=15",
    )
    roles = RayRoles(config, "rl", folder / "start", folder, phases.__setitem__)
    print({what: round(seconds, 1) for what, seconds in phases.items()})
    assert set(phases) == {"cluster", "placement", "learner", "rollout", "reference", "teacher", "reward"}
    return roles


def started_actor(rank: int, folder: Path) -> Member:
    """Start an actor that can fail; `rank` names it."""
    log = folder / f"troubled_{rank}.log"
    handle = ray.remote(Troubled).options(num_cpus=0).remote(f"troubled {rank}", log)
    member = Member(handle, "troubled", rank, log, ray.get_runtime_context().get_node_id())
    wait_all([Call(member, handle.pid.remote())], 60, "starting")
    return member


def kill_soon(member: Member) -> None:
    pid = int(member.log.read_text().rsplit("pid ", 1)[1].split()[0])
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
