"""Groups as a whole, for overrides that replace one."""

from typing import Any

from ral_system.config.data import ColumnsConfig

FILES: dict[str, Any] = {
    "name": "files",
    "seed": 0,
    "sources": {
        "main": {
            "path": "rows.json",
            "files": None,
            "root": None,
            "media_files": None,
            "revision": None,
            "weight": 1.0,
            "split": "both",
            "columns": dict.fromkeys(ColumnsConfig.model_fields) | {"question": "problem", "answer": "solution"},
        }
    },
    "system_prompt": "",
    "think_tags": "special",
    "instructions": {},
    "held_out": 0.1,
    "image": {"min_pixels": None, "max_pixels": None},
    "video": {"fps": 1.0, "max_frames": 8, "min_frames": 2, "min_pixels": 784, "max_pixels": 7840},
    "max_broken": 0.1,
    "workers": 1,
    "timeout_s": 10.0,
}

_MAIN = FILES["sources"]["main"]
SEEN = _MAIN | {"columns": _MAIN["columns"] | {"evidence": "boxes"}}
"""A source that says where answers are to be seen."""
EVIDENCE = {"name": "evidence", "gate": 0.5, "spread": 0.25, "smoothing": 0.1, "boxes": "own", "missing": "raise"}

_WORDS = {"system_prompt": "", "think_tags": "special"}
ASKED_VIDEOS = {"name": "video_search", "seed": 0, "seconds": (4,), "max_frames": (8,), **_WORDS}
ASKED_LOOKING = {"name": "looking", "seed": 0, "families": ("chain",), "difficulty": (1,), **_WORDS}
LOOKING = ASKED_LOOKING | {"described": 4, "small_boards": 0, "search_from": 0, "glance_share": 0.0, "train_records": 2}
VIDEOS = ASKED_VIDEOS | {"described": 4, "train_records": 2}

TORCH = {
    **{"engine": "torch", "world_size": 1, "max_tokens": 400, "dtype": "float32", "gradient_checkpointing": False},
    **{"learning_rate": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "max_grad_norm": 1.0, "warmup_updates": 0},
    "schedule": {"shape": "constant", "end": None},
    "rate_factors": {"vision": 1.0, "projector": 1.0},
    "lora": None,
}
LOCAL = {"kind": "local", "media_cache_gib": 8.0, "threads_per_process": 2}
LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "k_proj"], "vision": False}
HF = {
    **{"engine": "hf", "workers": 1, "temperature": 1.0, "max_new_tokens": 64, "stop_at_answer": False},
    **{
        "max_model_len": 256,
        "max_sequences": 8,
        "dtype": "float32",
        "weight_transfer": None,
        "weight_timeout_s": 120.0,
        "on_new_weights": "finish",
    },
    "log_prob_gate": {"token": 1e-4, "outliers": 0.0, "mean": None, "p999": None},
}
