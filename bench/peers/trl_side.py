"""TRL's GRPOTrainer on the exported questions. The only file that imports TRL.

`run_trl` starts a process with TRL's packages on its path: `python -m bench.peers.trl_side SETTINGS.json RESULT.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from bench.peers.clock import Clock
from bench.peers.errors import PeerError
from bench.peers.processes import run_module
from bench.peers.questions import Exported
from bench.peers.reward import even_words
from bench.peers.workloads import Shape


def run_trl(
    shape: Shape, exported: Exported, *, packages: Path, threads: int, micro_batch: int, model: Path, folder: Path
) -> list[dict[str, float]]:
    """Train on the exported questions; return the seconds of every batch, the first one included."""
    settings = {
        "shape": asdict(shape),
        "questions": str(exported.file),
        "banned_ids": exported.banned_ids,
        "threads": threads,
        "micro_batch": micro_batch,
        "model": str(model),
        "folder": str(folder / "run"),
        "seed": 0,
    }
    asked, answer = folder / "settings.json", folder / "batches.json"
    asked.write_text(json.dumps(settings), encoding="utf-8")
    run_module(
        "TRL",
        __spec__.name,
        [str(asked), str(answer)],
        path=[packages],
        log=folder / "output.log",
        settings={"OMP_NUM_THREADS": str(threads)},
    )
    found: list[dict[str, float]] = json.loads(answer.read_text(encoding="utf-8"))
    check_prompts(found, exported)
    return found


def check_prompts(batches: Sequence[Mapping[str, float]], exported: Exported) -> None:
    """Raise PeerError unless the prompts have as many tokens as those of `ral_system`, but for pictures' markers."""
    read, expected = mean(batch["prompt_tokens"] for batch in batches), exported.prompt_tokens + exported.markers
    if abs(read - expected) > 1e-6 * expected:
        raise PeerError(
            f"TRL's prompts have {read:.3f} tokens on average, and should have {expected:.3f}; the sides do not read "
            "the same, so their times cannot be compared"
        )


def main() -> None:
    """Train as the settings say and write the seconds of every batch."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(settings["threads"])
    clock = Clock()
    trainer = _trainer(settings, clock)
    trainer.train()
    clock.ended()
    Path(sys.argv[2]).write_text(json.dumps(clock.batches), encoding="utf-8")


def _trainer(settings: dict[str, Any], clock: Clock) -> Any:
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class TimedTrainer(GRPOTrainer):
        """GRPOTrainer with a clock around what it does."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            clock.batch_begins()
            made = super()._generate_and_score_completions(inputs)
            clock.made()
            return made

        def _generate(self, prompts: Any) -> Any:
            began = time.perf_counter()
            made = super()._generate(prompts)
            clock.rolled_out(time.perf_counter() - began, _mean_length(made[0]), _mean_length(made[1]))
            return made

    class Steps(TrainerCallback):
        """Tells the clock of optimiser steps."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.step_begins()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.step_ended()

    shape = Shape(**settings["shape"])
    micro_batch = min(settings["micro_batch"], shape.in_an_update)
    accumulated = shape.in_an_update // micro_batch
    config = GRPOConfig(
        output_dir=settings["folder"],
        max_steps=shape.updates * (shape.batches + 1),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulated,
        steps_per_generation=shape.updates * accumulated,
        num_iterations=1,
        num_generations=shape.completions,
        max_completion_length=shape.new_tokens,
        temperature=shape.temperature,
        top_p=1.0,
        top_k=0,
        beta=shape.kl,
        learning_rate=shape.learning_rate,
        adam_beta1=shape.betas[0],
        adam_beta2=shape.betas[1],
        max_grad_norm=shape.max_grad_norm,
        lr_scheduler_type="constant",
        generation_kwargs={"suppress_tokens": settings["banned_ids"]},
        shuffle_dataset=False,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=shape.updates,
        disable_tqdm=True,
        seed=settings["seed"],
    )
    processor = AutoProcessor.from_pretrained(settings["model"], padding_side="left")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(settings["model"], dtype=torch.float32)
    return TimedTrainer(
        model=model,
        reward_funcs=_reward,
        args=config,
        train_dataset=_dataset(Path(settings["questions"])),
        processing_class=processor,
        callbacks=[Steps()],
    )


def _reward(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    return [even_words(turns[-1]["content"]) for turns in completions]


def _dataset(file: Path) -> Any:
    from datasets import Dataset, Features, Image, List, Value

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    turns = [_turns(row["system"], row["question"]) for row in rows]
    images = [[{"path": os.fspath(file.parent / name), "bytes": None} for name in row["images"]] for row in rows]
    features = Features(
        {"prompt": List({"role": Value("string"), "content": Value("string")}), "images": List(Image())}
    )
    return Dataset.from_dict({"prompt": turns, "images": images}, features=features)


def _turns(system: str, question: str) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": question}]


def _mean_length(sequences: list[list[int]]) -> float:
    return mean(map(len, sequences))


if __name__ == "__main__":
    main()
