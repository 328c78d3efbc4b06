"""Engines for which there is not enough memory, of one rank and of two. This file is also what starts one."""

import multiprocessing
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import words

if TYPE_CHECKING:
    from tests.system.conftest import Commands

pytestmark = pytest.mark.system

REFUSED: dict[str, dict[str, float | None]] = {
    "its start": {"memory_gib": None, "gpu_memory_utilization": 1.0},
    "its cache": {"memory_gib": 5000.0},
    "no cache": {"memory_gib": 1e-5},
}
"""What vLLM refuses in a rank's constructor, in a rank's later call, and in the engine's process."""
LINES = {
    "its start": r"GiB of its host's memory are free, and with rollout.memory_gib=null vLLM asks for [\d.]+; set it to",
    "its cache": r"GiB of its host's memory are free, and rollout.memory_gib=5000.0 asks for more; lower it, or end",
    "no cache": r"rollout 3: nothing is left for the key-value cache; raise rollout.gpu_memory_utilization or ",
}


CASES = [
    pytest.param(ranks, refused, marks=() if (ranks, refused) == (2, "its start") else pytest.mark.long)
    for ranks in (1, 2)
    for refused in REFUSED
]


@pytest.mark.parametrize(("ranks", "refused"), CASES)
def test_a_refusal_is_one_line_whatever_the_number_of_ranks(
    commands: "Commands", tmp_path: Path, ranks: int, refused: str
) -> None:
    build_tiny_model(tmp_path / "model", words(), hidden=64, layers=2, vision_layers=1, seed=1)
    given = (__file__, str(tmp_path), str(ranks), refused)
    done = commands("python", *given, cwd=tmp_path, fresh=True, PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.returncode == 0, done.stderr[-3000:]
    line = done.stdout.splitlines()[-1]  # above it, vLLM's own log
    assert re.search(LINES[refused], line), line
    assert line.startswith("rollout 3: ")


@pytest.mark.long
def test_ranks_have_ended_when_an_engine_is_closed(commands: "Commands", tmp_path: Path) -> None:
    build_tiny_model(tmp_path / "model", words(), hidden=64, layers=2, vision_layers=1, seed=1)
    given = (__file__, str(tmp_path), "2", "nothing")
    done = commands("python", *given, cwd=tmp_path, fresh=True, PYTHONPATH=str(Path(__file__).parents[2]))
    assert done.stdout.splitlines()[-1] == "2 ranks, then 0", done.stderr[-3000:]


def work(folder: Path, ranks: int, refused: str) -> None:
    """Start an engine, and print what a user reads, or how many ranks there are before and after its end."""
    from ral_system.heavy_imports import heavy_imports
    from ral_system.media.store import MediaStore
    from ral_system.observability.quiet import silence_third_party
    from ral_system.planning.remedies import full_device
    from ral_system.rollout.vllm_environment import vllm_environment
    from tests.system.vllm_setting import CONFIG

    silence_third_party()
    os.environ |= vllm_environment(CONFIG, 1, "cpu")
    with heavy_imports():  # as an actor does
        from ral_system.rollout.vllm_generator import VllmEngine

    config = CONFIG.model_copy(update={"tensor_parallel": ranks} | REFUSED.get(refused, {}))
    try:
        engine = VllmEngine(folder / "model", config, MediaStore(folder / "media"), seed=0, device="cpu")
    except (RuntimeError, ValueError) as error:
        print(full_device(error, "rollout 3"))
        return
    started = [child.pid for child in multiprocessing.active_children()]
    engine.close()
    print(f"{len(started)} ranks, then {sum(Path(f'/proc/{pid}').exists() for pid in started)}")


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
