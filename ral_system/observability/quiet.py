"""Keep third parties from burying a run's own output. Call before the first of them is imported, in every process.

Set through the environment so that child processes inherit it; what the user has set already wins.
"""

from __future__ import annotations

import logging
import os
import warnings

_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns about a coming change in every actor without a GPU
    "RAY_USAGE_STATS_ENABLED": "0",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCHDYNAMO_VERBOSE": "0",
    "GLOG_minloglevel": "2",
    "GRPC_VERBOSITY": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "WANDB_SILENT": "true",
    "PYTHONWARNINGS": "ignore",
}
_LOGGERS = ("transformers", "huggingface_hub", "vllm", "DeepSpeed", "deepspeed", "torch", "ray", "wandb", "urllib3")


def silence_third_party() -> None:
    """Errors only from transformers, vLLM, DeepSpeed, Ray, torch, W&B; no progress bars but ours. Imports none."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)
        logger.addFilter(_errors_only)  # survives a library that sets its own level when it is imported
    warnings.filterwarnings("ignore")


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
