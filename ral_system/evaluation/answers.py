"""A model's answers to many questions, each written as soon as it exists, so no question is asked twice."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ral_system.observability.jsonl import JsonLines, read_objects
from ral_system.types import Completion, Completions, FinishReason, Prompt, Sampling

Generate = Callable[[Sequence[Prompt], Sampling], Completions]
"""`Generator.generate`, of a pool or of one engine."""


def collect_answers(
    start: Callable[[], Generate],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    path: Path,
    show: Callable[[int], None],
) -> dict[str, list[Completion]]:
    """Return each prompt's completions by index: those in `path` already, and new ones, which are added to it.

    `start` makes an engine ready, if anything is missing. `show` is told how many prompts are done. A prompt with
    missing completions is asked again.
    """
    found = _read(path, sampling.completions)
    missing = [prompt for prompt in prompts if prompt.id not in found]
    done = len(prompts) - len(missing)
    show(done)
    under_way: dict[str, list[Completion]] = defaultdict(list)
    if not missing:
        return {prompt.id: found[prompt.id] for prompt in prompts}
    with closing(JsonLines(path)) as log, closing(start()(missing, sampling)) as completions:
        for completion in completions:
            log.append(_line(completion))
            of_prompt = under_way[completion.prompt_id]
            of_prompt.append(completion)
            if len(of_prompt) == sampling.completions:
                done += 1
                show(done)
    for id, of_prompt in under_way.items():
        found[id] = sorted(of_prompt, key=lambda c: c.index)
    return {prompt.id: found[prompt.id] for prompt in prompts}


def answers_file(folder: Path, model: Path, prompts: Sequence[Prompt], sampling: Sampling, *engine: object) -> Path:
    """Return the file for the current model's answers to these prompts with this sampling.

    `engine` is everything else that decides over them.
    """
    digest = hashlib.sha256(repr((sampling, engine)).encode())
    digest.update(str(model.resolve()).encode())
    for file in sorted([*model.glob("*.safetensors"), *model.glob("*.bin"), *model.glob("*config.json")]):
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    for prompt in prompts:
        digest.update(f"{prompt.id} {prompt.token_ids} {prompt.media}".encode())
    return folder / "answers" / f"{digest.hexdigest()[:16]}.jsonl"


def _read(path: Path, completions: int) -> dict[str, list[Completion]]:
    """Keep only whole groups; if an interruption left a completion twice, keep the later one."""
    found: dict[str, dict[int, Completion]] = defaultdict(dict)
    for line in read_objects(path):
        found[line["prompt_id"]][line["index"]] = _completion(line)
    return {
        id: [by_index[i] for i in range(completions)]
        for id, by_index in found.items()
        if by_index.keys() >= set(range(completions))
    }


def _line(c: Completion) -> dict[str, Any]:
    return {
        "prompt_id": c.prompt_id,
        "index": c.index,
        "text": c.text,
        "token_ids": list(c.token_ids),
        "finish_reason": str(c.finish_reason),
        "seed": c.seed,
    }


def _completion(line: dict[str, Any]) -> Completion:
    return Completion(
        prompt_id=line["prompt_id"],
        index=line["index"],
        token_ids=tuple(line["token_ids"]),
        log_probs=(),
        text=line["text"],
        finish_reason=FinishReason(line["finish_reason"]),
        weight_version=0,
        seed=line["seed"],
    )
