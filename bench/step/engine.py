"""One vLLM engine without Ray: how much of a rollout is its steps, its requests, and its pictures."""

from __future__ import annotations

import multiprocessing as mp
import os
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ral_system.config.commands import TrainConfig
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.types import Prompt, Sampling

NEW_TOKENS = 12
PARTS = {"vLLM's steps": "step", "vLLM's add_request": "add_request", "prompts and pictures": "render_cmpl"}
"""Parts of a rollout by the method of vLLM's engine, or of its renderer, that does them."""


def measure(config: TrainConfig, model: Path, media: Path, prompts: Sequence[Prompt], repeats: int) -> dict[str, float]:
    """Milliseconds in which an engine on one thread gives 8 responses of 12 tokens to each prompt, part by part."""
    mine, theirs = mp.Pipe(duplex=False)
    arguments = (theirs, config, model, media, prompts, repeats)
    process = mp.get_context("spawn").Process(target=_engine, args=arguments, daemon=True)
    process.start()
    theirs.close()
    found: dict[str, float] = mine.recv()
    process.join(timeout=60)
    return found


def _engine(
    pipe: Connection, config: TrainConfig, model: Path, media: Path, prompts: Sequence[Prompt], repeats: int
) -> None:
    rollout: Any = config.rollout
    os.environ |= vllm_environment(rollout, 1, "cpu") | {"CUDA_VISIBLE_DEVICES": ""}
    from ral_system.media.store import MediaStore
    from ral_system.rollout.vllm_generator import VllmEngine

    engine = VllmEngine(model, rollout, MediaStore(media), 0, "cpu")
    inner, spent = engine._llm.llm_engine, dict.fromkeys(PARTS, 0.0)
    for part, method in PARTS.items():
        owner = inner.renderer if method == "render_cmpl" else inner
        setattr(owner, method, _timed(getattr(owner, method), spent, part))
    rows = []
    for step in range(repeats + 1):
        spent.update(dict.fromkeys(PARTS, 0.0))
        began = time.perf_counter()
        for _ in engine.generate(prompts, Sampling(8, 1.0, NEW_TOKENS, step)):
            pass
        whole = time.perf_counter() - began
        rows.append({"all": whole, **spent, "the rest": whole - sum(spent.values())})
    engine.close()
    pipe.send({name: 1e3 * statistics.median(row[name] for row in rows[1:]) for name in rows[0]})


def _timed(method: Callable[..., Any], spent: dict[str, float], part: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        found = method(*args, **kwargs)
        spent[part] += time.perf_counter() - began
        return found

    return run
