"""A full GPU, as one line."""

import importlib.util
from pathlib import Path

import pytest
import torch

from ral_system.actors.process import ActorProcess, watched
from ral_system.config.commands import TrainConfig
from ral_system.errors import SetupError
from ral_system.launch.mistakes import explain
from ral_system.planning.remedies import full_device

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB")


class Learner(ActorProcess):
    @watched
    def update(self, error: Exception) -> None:
        """Fail."""
        raise error


@pytest.fixture
def learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Learner:
    monkeypatch.setattr("ral_system.actors.process._redirect_output", lambda log: None)
    monkeypatch.setattr("ral_system.actors.process.faulthandler.enable", lambda file: None)
    return Learner("learner 2", tmp_path / "learner.log")


def test_a_rank_whose_gpu_is_full_says_what_to_change(learner: Learner, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SetupError) as refused:
        learner.update(FULL)
    line = str(refused.value)
    assert line.startswith(
        "learner 2: its GPU is full (it could not allocate 2.50 GiB); lower learner.max_tokens, set learner"
    )
    assert line.endswith("; ral-plan prints what each role holds") and "\n" not in line
    assert "CUDA out of memory" in capsys.readouterr().err  # the log has all of it
    with pytest.raises(SetupError, match=r"^torchvision does not fit the installed torch \(operator torchvision::nms"):
        learner.update(RuntimeError("operator torchvision::nms does not exist"))
    with pytest.raises(RuntimeError, match="shapes"):
        learner.update(RuntimeError("shapes"))


def test_an_engine_that_vllm_refuses_says_what_is_free() -> None:
    """The sentence of `vllm/v1/worker/utils.py`; a stage before may have left a process behind."""
    refusal = (
        "Free memory on device cuda:0 (30.21/79.11 GiB) on startup is less than {} (0.9, 71.2 GiB). Decrease GPU "
        "memory utilization or reduce GPU memory used by other processes."
    )
    budget = "the engine's budget after excluding external process's weights"
    for what in ("desired GPU memory utilization", budget):
        assert str(full_device(ValueError(refusal.format(what)), "rollout 1")) == (
            "rollout 1: 30.21 of 79.11 GiB of its GPU are free, and rollout.gpu_memory_utilization=0.9 asks for 71.2; "
            "lower it, or end the other processes on the GPU (`nvidia-smi` lists them)"
        )
    assert full_device(ValueError("Free memory on device"), "rollout 1") is None


def test_a_cache_too_small_for_one_sequence_is_named_with_what_it_needs() -> None:
    """The sentence of `vllm/v1/core/kv_cache_utils.py`."""
    refusal = (
        "To serve at least one request with the model's max seq len (32768), (1.75 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (0.42 GiB). Based on the available memory, the estimated maximum "
        "model length is 7856. Try increasing `gpu_memory_utilization`"
    )
    line = str(full_device(ValueError(refusal), "rollout 0"))
    assert line.startswith(
        "rollout 0: rollout.max_model_len=32768 needs a key-value cache of 1.75 GiB, and has 0.42; lower it, raise"
    )


def test_an_engines_rank_whose_gpu_is_full_is_the_same_line() -> None:
    """A rank's error comes with its name while the engine starts, and later in vLLM's words."""
    alone = full_device(FULL, "rollout 0")
    words = f"Worker failed with error '{FULL}', please check the stack trace above for the root cause"
    assert str(full_device(RuntimeError(words), "rollout 0")) == str(alone)
    assert str(full_device(RuntimeError(f"OutOfMemoryError: {FULL}"), "rollout 0")) == str(alone)
    assert full_device(RuntimeError("Worker failed with error 'shapes', please check"), "rollout 0") is None


WORDS = {
    "v1/worker/utils.py": (
        "Free memory on device {init_snapshot.device_} ",
        "GiB) on startup ",
        "is less than desired GPU memory",
    ),
    "v1/worker/cpu_worker.py": ("on startup ", "is less than desired CPU memory", "requested memory for kv "),
    "v1/core/kv_cache_utils.py": ("No available memory for the cache blocks", "is needed, which is larger than the"),
    "v1/executor/multiproc_executor.py": ("Worker failed with error '{result}'", 'logger.exception("WorkerProc '),
}


@pytest.mark.parametrize("file", WORDS)
def test_vllm_still_refuses_in_these_words(file: str) -> None:
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        pytest.skip("needs vLLM")
    text = (Path(vllm.origin).parent / file).read_text()
    for words in WORDS[file]:
        assert words in text


def test_every_role_has_a_remedy_of_its_own_and_one_process_the_learners() -> None:
    lines = [str(full_device(FULL, f"{role} 0")) for role in ("learner", "rollout", "reference", "teacher")]
    assert len({line.partition("; ")[2] for line in lines}) == 4
    assert "lower rollout.gpu_memory_utilization" in lines[1]
    local = explain(FULL, TrainConfig)
    assert isinstance(local, SetupError) and str(local).startswith(
        "this process: its GPU is full (it could not allocate"
    )
    assert "lower learner.max_tokens" in str(local)
    assert explain(MemoryError("CUDA out of memory"), TrainConfig) is None
