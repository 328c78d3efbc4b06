"""A learner in one process on one thread: what scoring and an update spend their time on."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.peers.questions import compose
from ral_system.config.commands import TrainConfig
from ral_system.data.chat import ChatRenderer
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import VisualSearch, words
from ral_system.training.learner_rank import LearnerRank
from ral_system.training.plan import plan_updates
from ral_system.types import Sample

KERNELS = {
    "attention": ("_scaled_dot_product",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "optimiser and norms": ("fused_adamw", "linalg_vector_norm", "_foreach"),
    "copies and indices": ("copy_", "cat", "index", "gather", "scatter", "clone", "fill_", "zero_", "select_backward"),
}
OTHER = "other operations"
"""Kinds of kernels by parts of their names, in order; all others are element-wise operations and sums."""
GATE = "rollout.log_prob_gate={token: 1e9, mean: null, p999: null}"
HEAD = "the head alone, contained in the rows above"
Columns = dict[str, dict[str, float]]
"""Milliseconds by column and row of a table."""


@dataclass(frozen=True, slots=True)
class Work:
    """A model in a folder, and responses of four updates to learn from."""

    model: Path
    media: Path
    samples: tuple[Sample, ...]

    @classmethod
    def made(cls, folder: Path) -> Work:
        """Build the quickstart's model with new weights, and write demonstrations as 16 × 8 responses."""
        build_tiny_model(folder / "model", words(), seed=0, hidden=128, layers=4, vision_layers=2)
        samples = _samples(folder / "model", MediaStore(folder / "media"))
        return cls(folder / "model", folder / "media", tuple(samples))

    def calls(self, config: TrainConfig, rank: int, ranks: int) -> tuple[LearnerRank, dict[str, Callable[[], object]]]:
        """A learner rank, and its calls: to score all samples, and to make one of four updates on them."""
        learner = LearnerRank(config, self.model, MediaStore(self.media), rank, ranks, "rl")
        learner.publish(1)  # at version 0 the term's share of the gradient is measured as well
        plan = plan_updates(self.samples, updates=4, shards=ranks, max_tokens=config.learner.max_tokens)
        old = learner.score(plan)
        return learner, {
            "scoring": partial(learner.score, plan),
            "update": partial(learner.update, plan.updates[0], old, old),
        }


def measure(work: Work, repeats: int) -> Columns:
    """Milliseconds of scoring and of an update, with the attention term and without, by what they are spent on."""
    found: Columns = {}
    for term, weight in (("", None), (", no attention term", 0.0)):
        learner, calls = work.calls(_config(weight), 0, 1)
        for name, call in calls.items():
            found[name + term] = spent(call, repeats) | {HEAD: head(learner, call, name == "update", repeats)}
    return found


def head(learner: LearnerRank, call: Callable[[], object], trains: bool, repeats: int) -> float:
    """Milliseconds of the language-model head in a call: what went into it goes through it again, alone.

    In an update also backward, with gradients to the hidden states and to the head's weights.
    """
    module, given = learner._engine.policy.model.lm_head, []
    handle = module.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    call()
    handle.remove()
    inputs = [(hidden.detach().requires_grad_(trains), *others) for hidden, *others in given]

    def pass_through() -> None:
        for arguments in inputs:
            with torch.set_grad_enabled(trains):
                values = module(*arguments)
            if trains:
                values.log_probs.sum().backward()

    found = timed(pass_through, repeats)
    module.zero_grad()
    return found


def timed(call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of a call, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def spent(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds of a call: all, by kind of kernel, and the rest."""
    whole = timed(call, repeats)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    kernels: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            kernels[_kind(event.key)] += event.self_cpu_time_total / 1e3
    kinds = {kind: kernels[kind] for kind in (*KERNELS, OTHER) if kind in kernels}
    return {"all": whole, **kinds, "Python and dispatch": whole - sum(kinds.values())}


def _kind(name: str) -> str:
    return next((kind for kind, parts in KERNELS.items() if any(part in name for part in parts)), OTHER)


def _config(weight: float | None) -> TrainConfig:
    overrides = ["experiment=quickstart", "cluster=local", "learner=torch", "rollout=hf", "learner.learning_rate=1e-5"]
    return compose([*overrides, GATE, *([] if weight is None else [f"algorithm.attention.weight={weight}"])])


def _samples(model: Path, media: MediaStore) -> Sequence[Sample]:
    renderer, samples = ChatRenderer(load_family(model), "answer"), []
    for i in range(16):
        record = VisualSearch(seed=0, grid=3, objects=6).record("train", i)
        prompt = renderer.prompt(
            id=f"p{i}",
            kind=record.kind,
            question=record.question,
            answer=record.answer,
            media=[media.put(record.image)],
        )
        ids = renderer.response(f"<think> {record.thought} </think> <answer> {record.answer} </answer>")
        first = Sample(f"p{i}#0", prompt, ids, (-1.0,) * len(ids), weight_version=1)
        samples += [replace(first, id=f"p{i}#{g}", advantage=(-1.0) ** g) for g in range(8)]
    return samples
