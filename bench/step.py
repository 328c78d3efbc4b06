"""`python -m bench.step`: where the time of the quickstart's step goes.

The learner's part is measured in one process on one thread: scoring 16 × 8 responses, and one of four updates on them,
with new weights and demonstrations as responses. PyTorch's profiler times the kernels; what a pass takes beside them,
which the profiler makes seem less, is Python and dispatch. With --run, the phases of a run's steps on Ray stand beside
that.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.machine import commit, processor, versions
from bench.peers.questions import compose
from ral_system.config.commands import TrainConfig
from ral_system.data.chat import ChatRenderer
from ral_system.launch.arguments import Parser
from ral_system.media.store import MediaStore
from ral_system.models.loading import load_family
from ral_system.observability.jsonl import read_objects
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
"""Kinds of kernels by parts of their names, in order; all others are element-wise operations and sums."""
PHASES = ("rollout", "score", "update", "sync", "reward", "data")


def main() -> None:
    """Measure, print tables, and write the figures."""
    parser = Parser(prog="python -m bench.step", description=__doc__)
    parser.add_argument("--run", type=Path, action="append", default=[], help="folder of a run; may be repeated")
    parser.add_argument("--repeats", type=int, default=9, help="timed repetitions (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/step.json"), help="file (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {"learner": measure(options.repeats), "runs": [phases(folder) for folder in options.run]}
    _print(found)
    about = {"commit": commit(), "device": processor(), "versions": versions(["torch", "transformers"])}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(about | found, indent=1) + "\n")


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of scoring and of an update, with the attention term and without, by what they are spent on."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_tiny_model(folder / "model", words(), seed=0, hidden=128, layers=4, vision_layers=2)
        media = MediaStore(folder / "media")
        samples = _samples(folder / "model", media)
        found: dict[str, dict[str, float]] = {}
        for term, weight in (("", None), (", no attention term", 0.0)):
            config = _config(weight)
            learner = LearnerRank(config, folder / "model", media, 0, 1, "rl")
            learner.publish(1)  # at version 0 the term's share of the gradient is measured as well
            plan = plan_updates(samples, updates=4, shards=1, max_tokens=config.learner.max_tokens)
            old = learner.score(plan)
            found[f"scoring{term}"] = spent(partial(learner.score, plan), repeats)
            found[f"update{term}"] = spent(partial(learner.update, plan.updates[0], old, old), repeats)
    return found


def spent(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds of a call: all, by kind of kernel, and the rest."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    kernels: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            kernels[_kind(event.key)] += event.self_cpu_time_total / 1e3
    whole = statistics.median(times)
    return {"all": whole, **kernels, "Python and dispatch": whole - sum(kernels.values())}


def phases(folder: Path) -> dict[str, Any]:
    """Median milliseconds of the phases of a run's rl steps."""
    rows = [
        row for row in read_objects(folder / "metrics.jsonl") if row.get("stage") == "rl" and "time/update_s" in row
    ]
    return {
        phase: 1e3 * statistics.median(row[f"time/{phase}_s"] for row in rows)
        for phase in PHASES
        if all(f"time/{phase}_s" in row for row in rows)
    }


def _kind(name: str) -> str:
    return next((kind for kind, parts in KERNELS.items() if any(part in name for part in parts)), "other operations")


def _config(weight: float | None) -> TrainConfig:
    overrides = ["experiment=quickstart", "cluster=local", "learner=torch", "rollout=hf", "learner.learning_rate=1e-5"]
    gate = "rollout.log_prob_gate={token: 1e9, mean: null, p999: null}"
    return compose([*overrides, gate, *([] if weight is None else [f"algorithm.attention.weight={weight}"])])


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


def _print(found: dict[str, Any]) -> None:
    columns = list(found["learner"])
    print(f"| ms | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in ("all", *KERNELS, "other operations", "Python and dispatch"):
        cells = [f"{found['learner'][column].get(row, 0):.1f}" for column in columns]
        print(f"| {row} | {' | '.join(cells)} |")
    for run in found["runs"]:
        print("  ".join(f"{phase} {milliseconds:.0f} ms" for phase, milliseconds in run.items()))


if __name__ == "__main__":
    main()
