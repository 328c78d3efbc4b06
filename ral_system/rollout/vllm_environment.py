"""Environment of a process that will import vLLM. Set before the process starts: vLLM reads most of it on import."""

from __future__ import annotations

from ral_system.config.choices import Device
from ral_system.config.rollout import EngineConfig


def vllm_environment(config: EngineConfig, threads: int, device: Device) -> dict[str, str]:
    """Variables for one engine process of `threads` OpenMP threads."""
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core in this process: its weights can be read back
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",  # on CPU it warns at every image that it keeps its thread count
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # the model is in a local folder, and vLLM would still ask the hub about processor files
    }
    if device == "cpu":
        environment |= {
            "OMP_NUM_THREADS": str(threads),
            # One binding per process would stack all engines of a machine on the same cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Idle threads sleep instead of spinning on the cores that another role needs.
            "OMP_WAIT_POLICY": "PASSIVE",
            "KMP_BLOCKTIME": "0",
        }
    return environment
