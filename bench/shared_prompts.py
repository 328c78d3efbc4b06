"""`python -m bench.shared_prompts`: what it saves to compute a prompt once for all its responses.

Scores and trains on one group, on the attention term as on the tokens, once with the prompt shared and once with a
prompt for each response, in turn. On a GPU: eight layers of Qwen2.5-VL-7B in bfloat16 at 9k and 16k tokens; on CPU a
tiny model over prompt lengths and group sizes. Prompts are text, so the ideal is the quotient of tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from bench.machine import commit, processor, versions
from bench.plot_shared import draw
from ral_system.attention.probe import IMPLEMENTATION
from ral_system.attention.read import AttentionRead
from ral_system.attention.record import record_attention
from ral_system.batches.collate import Collator
from ral_system.batches.micro_batches import groups_of, micro_batches
from ral_system.device_kind import meta_stands_for
from ral_system.families.family import Family
from ral_system.launch.arguments import Parser
from ral_system.media.store import MediaStore
from ral_system.models.flops import FlopCounter
from ral_system.models.loading import load_family
from ral_system.models.policy import PolicyModel
from ral_system.observability.work import PEAK_TFLOPS
from ral_system.planning.outline import OUTLINE, Outlines
from ral_system.tasks.tiny_model import build_tiny_model
from ral_system.tasks.visual_search import words
from ral_system.types import AttentionRecord, MicroBatch, Prompt, Sample

READ = AttentionRead()
LAYERS_OF_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 8,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "layer_types": ["full_attention"] * 8,
}


@dataclass(frozen=True)
class Shape:
    """A group: tokens of its prompt, tokens of each response, and their number."""

    prompt: int
    response: int
    group: int


CPU_SHAPES = [Shape(p, 50, g) for g in (4, 8) for p in (30, 100, 300, 1000, 2000)] + [Shape(1000, 50, 16)]
QUICK_SHAPES = [Shape(30, 10, 2), Shape(60, 10, 4)]
GPU_SHAPES = [Shape(8192, 768, 8), Shape(15360, 1024, 8), Shape(1024, 768, 8)]


def main() -> None:
    """Measure, write the figures and a picture, and print a table."""
    parser = Parser(prog="python -m bench.shared_prompts", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds; its figures mean nothing")
    parser.add_argument("--hidden", type=int, default=128, help="width of the model on a CPU (%(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="its layers (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns of each side (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cuda = torch.cuda.is_available()
    shapes = QUICK_SHAPES if options.quick else GPU_SHAPES if cuda else CPU_SHAPES
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options, cuda=cuda and not options.quick)
        found = []
        for shape in shapes:
            found.append(bench.measure(shape, options.repeats))
            print(_row(found[-1]), flush=True)
    _write(found, options, bench)


def _write(found: list[dict[str, Any]], options: argparse.Namespace, bench: Bench) -> None:
    cuda = bench.device.type == "cuda"
    name = f"shared_prompts_{'gpu' if cuda else 'cpu' if options.hidden == 128 else f'cpu_{options.hidden}'}"
    if not options.quick:
        about = {
            "commit": commit(),
            "device": torch.cuda.get_device_name() if cuda else processor(),
            "threads": options.threads,
            "versions": versions(["torch", "transformers", "flash-attn"]),
        }
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{name}.json").write_text(json.dumps(about | {"groups": found}, indent=1) + "\n")
        (options.out / f"{name}.svg").write_text(draw(found, "What sharing a prompt saves"))
    print("\n| prompt + responses | tokens | score | update | of the ideal | MFU | planned GiB | peak GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in found:
        print(_row(row))


def _row(row: Mapping[str, Any]) -> str:
    score, update = row["score"], row["update"]
    mfu = f"{row['mfu']:.0%}, unshared {row['unshared_mfu']:.0%}" if row["mfu"] else ""
    peak = " / ".join(f"{gib:.3g}" for gib in row["peak_gib"])
    return (
        f"| {row['prompt']} + {row['group']} × {row['response']} | {row['tokens']:.2f} × fewer "
        f"| {score[0]:.3g} / {score[1]:.3g} s: {score[1] / score[0]:.2f} × "
        f"| {update[0]:.3g} / {update[1]:.3g} s: {update[1] / update[0]:.2f} × "
        f"| {score[1] / score[0] / row['tokens']:.2f}, {update[1] / update[0] / row['tokens']:.2f} | {mfu} "
        f"| {row['planned_gib']:.3g} | {peak} |"
    )


class Bench:
    """A model and groups of random words."""

    def __init__(self, folder: Path, options: argparse.Namespace, *, cuda: bool) -> None:
        self.device = torch.device("cuda" if cuda else "cpu")
        size = {"hidden": options.hidden, "layers": options.layers}
        build_tiny_model(folder / "model", words(), seed=0, vision_layers=2, **size)
        self.family: Family = load_family(folder / "model")
        config = self.family.config
        config._attn_implementation = IMPLEMENTATION
        if cuda:
            for name, value in LAYERS_OF_7B.items():
                setattr(config.text_config, name, value)
            config.text_config.rope_parameters["mrope_section"] = [16, 24, 24]
            config.vision_config.out_hidden_size = LAYERS_OF_7B["hidden_size"]
        torch.manual_seed(0)
        self.policy, self._outline = self._new_policy(self.device), self._new_policy(OUTLINE)
        self._flops = FlopCounter(self.policy.model, self.family)
        self._collate = Collator(self.family, MediaStore(folder / "media"))
        self._vocabulary = len(self.family.tokenizer)

    def _new_policy(self, device: torch.device) -> PolicyModel:
        cuda = self.device.type == "cuda"
        dtype = torch.bfloat16 if cuda else torch.float32
        with device:
            model = AutoModelForImageTextToText.from_config(
                self.family.config, dtype=dtype, attn_implementation=IMPLEMENTATION
            )
        self.family.vision_encoder(model).requires_grad_(False)
        policy = PolicyModel(model, self.family, temperature=1.0).to(device).train()
        if cuda:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if device == OUTLINE:
            policy.banned_token_ids = PolicyModel(model, self.family, temperature=1.0).banned_token_ids
        return policy

    def measure(self, shape: Shape, repeats: int) -> dict[str, Any]:
        """Seconds of scoring and of an update, with the prompt shared and without, and what follows from them."""
        generator = torch.Generator().manual_seed(0)

        def ids(count: int) -> tuple[int, ...]:
            return tuple(torch.randint(20, self._vocabulary, (count,), generator=generator).tolist())

        prompt = Prompt("p", "", "", "", (), ids(shape.prompt))
        shared = tuple(Sample(f"p#{i}", prompt, ids(shape.response), advantage=(-1.0) ** i) for i in range(shape.group))
        apart = tuple(replace(sample, prompt=replace(prompt, id=sample.id)) for sample in shared)
        budget = shape.prompt + shape.group * shape.response
        sides = [micro_batches(groups_of(samples), budget) for samples in (shared, apart)]
        records = self._score(sides[0])
        calls: list[list[Callable[[], object]]] = [
            [lambda side=side: self._score(side) for side in sides],  # type: ignore[misc]
            [lambda side=side: self._update(self.policy, side, records) for side in sides],  # type: ignore[misc]
        ]
        score, update = ([statistics.median(t) for t in self._in_turn(pair, repeats)] for pair in calls)
        packing = self._collate(shared).packing
        head = self._flops.head(shape.group * shape.response)
        flops = [3 * (self._flops.text(packing, shared=one) + head) for one in (True, False)]
        peaks = [self._peak(call) for call in calls[1]] if self.device.type == "cuda" else []
        fastest = [peak for name, peak in PEAK_TFLOPS.items() if peaks and name in torch.cuda.get_device_name()]
        return {
            "prompt": shape.prompt,
            "response": shape.response,
            "group": shape.group,
            "tokens": packing.unshared_tokens / packing.tokens,
            "score": score,
            "update": update,
            "mfu": flops[0] / update[0] / 1e12 / fastest[0] if fastest else None,
            "unshared_mfu": flops[1] / update[0] / 1e12 / fastest[0] if fastest else None,
            "peak_gib": peaks,
            "planned_gib": self._planned(sides[0], records),
        }

    def _in_turn(self, pair: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
        for call in pair:
            call()
        times: list[list[float]] = [[], []]
        for _ in range(repeats):
            for call, found in zip(pair, times, strict=True):
                self._wait()
                began = time.perf_counter()
                call()
                self._wait()
                found.append(time.perf_counter() - began)
        return times

    @torch.no_grad()
    def _score(self, parts: Sequence[MicroBatch]) -> dict[str, AttentionRecord]:
        found = {}
        for samples in parts:
            output = self.policy(self._collate(samples).to(self.device), [READ])
            for rows, group in zip(output.attention[READ], groups_of(samples), strict=True):
                for response, blocks in groupby(rows.by_response(rows.policies(0)), itemgetter(0)):
                    found[group[response].id] = record_attention(
                        (block for _, block in blocks),
                        version=0,
                        tokens=group[response].length,
                        top_k=None,
                        dtype=torch.float32,
                    )
        return found

    def _planned(self, parts: Sequence[MicroBatch], records: Mapping[str, AttentionRecord]) -> float:
        """GiB of weights and of an update, as `ral-plan` counts them: without memory."""
        with meta_stands_for("cuda" if self.device.type == "cuda" else "cpu"), Outlines() as outlines:
            self._update(self._outline, parts, records)
        return (sum(p.nbytes for p in self._outline.parameters()) + outlines.peak_bytes) / 2**30

    def _update(self, policy: PolicyModel, parts: Sequence[MicroBatch], records: Mapping[str, AttentionRecord]) -> None:
        count = sum(len(samples) for samples in parts)
        for samples in parts:
            batch = self._collate(samples).to(next(policy.parameters()).device)
            output = policy(batch, [READ])
            loss: Tensor = -(batch.advantages[:, None] * output.log_probs).sum() / count
            for rows, group in zip(output.attention[READ], groups_of(samples), strict=True):
                loss = loss + rows.divergence([[records[s.id]] for s in group], "jsd").sum() / count
            loss.backward()
        policy.zero_grad(set_to_none=True)

    def _peak(self, call: Callable[[], object]) -> float:
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / 2**30

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
