"""`python -m bench.head`: time and memory of the language-model head, dense and in tiles.

Forward and backward pass from hidden states to their gradient and the weight's, for log-probs, entropies and whether
tokens are the most likely ones. Memory is what a pass takes beyond its inputs and the gradients that it returns. The
last row compares the head at the quickstart's shape with the formulas written out. Needs torch and transformers only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bench.measure import MEMORY_METHOD, TIME_METHOD, PeakMemory, available_bytes, in_child, time_in_turns
from ral_system.algorithms import tiled_head
from ral_system.algorithms.log_probs import entropy, sampling_log_softmax
from ral_system.algorithms.token_read import TokenRead
from ral_system.config.choices import Device
from ral_system.launch.arguments import Parser
from ral_system.models.head import TokenHead

Variant = Literal["dense", "tiled", "written out"]
QUICKSTART = (300, 210, 128)
"""Tokens, vocabulary and hidden size."""
DENSE_TENSORS = 6
"""Tensors [N, V] of float32 that must fit in half of the free memory; else the dense variant is left out."""
_NEVER = 1 << 60


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one measurement."""

    tokens: int
    vocabulary: int
    hidden: int
    dtype: Literal["float32", "bfloat16"]


def main() -> None:
    """Measure, print a table, and write the figures."""
    cuda = torch.cuda.is_available()
    parser = Parser(prog="python -m bench.head", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, seconds; its figures mean nothing")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 16384], metavar="N")
    parser.add_argument("--vocabulary", type=int, default=152_064, metavar="V", help="default %(default)s")
    parser.add_argument("--hidden", type=int, default=3584 if cuda else 64, metavar="E", help="default %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if cuda else "float32")
    parser.add_argument("--seconds", type=float, default=10.0, help="per size, for timing; 0: memory only")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads; 1 gives steady figures on a machine that is shared"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/head.json"), help="file (%(default)s)")
    options = parser.parse_args()
    if options.dry_run:
        options.tokens, options.vocabulary, options.seconds = [3000, 6000], 9_000, 0.1
    if options.threads:
        torch.set_num_threads(options.threads)
    device: Device = "cuda" if cuda else "cpu"
    records = [_measure(shape, device, options.seconds) for shape in _shapes(options)]
    small = _small(device, 0.1 if options.dry_run else 5.0)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dry_run": options.dry_run,
        "load_average": os.getloadavg()[0],
        "method": {"time": TIME_METHOD[device], "memory": MEMORY_METHOD[device]},
        "sizes": records,
        "quickstart": small,
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _print(records, small)


def _shapes(options: argparse.Namespace) -> list[Shape]:
    return [Shape(n, options.vocabulary, options.hidden, options.dtype) for n in options.tokens]


def _measure(shape: Shape, device: Device, seconds: float) -> dict[str, Any]:
    variants: list[Variant] = ["dense", "tiled"]
    free, needed = available_bytes(device), DENSE_TENSORS * 4 * shape.tokens * shape.vocabulary
    record: dict[str, Any] = asdict(shape) | {"failure": {}}
    if free is not None and needed > free / 2:
        variants.remove("dense")
        record["failure"]["dense"] = f"left out: needs about {needed / 2**30:.1f} GiB"
    for variant in variants:
        peak, why = in_child(peak_bytes, shape, variant, device, timeout_s=900.0)
        record[f"{variant}_peak_bytes"] = peak
        if why:
            record["failure"][variant] = why
    if seconds > 0:
        calls = {variant: _call(shape, variant, device)[0] for variant in variants}
        times, failures = time_in_turns(calls, device, min_repeats=2, max_repeats=50, seconds=seconds)
        record |= {f"{variant}_s": of_variant for variant, of_variant in times.items()}
        record["failure"] |= failures
    return record


def _small(device: Device, seconds: float) -> dict[str, list[float]]:
    variants: Sequence[Variant] = ("written out", "dense")
    calls = {variant: _call(Shape(*QUICKSTART, "float32"), variant, device)[0] for variant in variants}
    times, _ = time_in_turns(calls, device, min_repeats=20, max_repeats=2000, seconds=seconds)
    return {f"{variant.replace(' ', '_')}_s": of_variant for variant, of_variant in times.items()}


def peak_bytes(shape: Shape, variant: Variant, device: Device) -> int:
    """Peak of one forward and backward pass, less the gradients."""
    _call(Shape(64, 512, 64, shape.dtype), variant, device)[0]()  # what torch allocates once
    call, gradient_bytes = _call(shape, variant, device)
    memory = PeakMemory(device)
    call()
    return memory.bytes() - gradient_bytes


def _call(shape: Shape, variant: Variant, device: Device) -> tuple[Callable[[], None], int]:
    """A forward and backward pass, and the size of its gradients."""
    torch.manual_seed(0)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[shape.dtype]
    head = TokenHead(shape.hidden, shape.vocabulary, bias=False, dtype=dtype, device=device)
    hidden_NE = torch.randn(shape.tokens, shape.hidden, dtype=dtype, device=device, requires_grad=True)
    targets_N = torch.randint(3, shape.vocabulary, (shape.tokens,), device=device)
    banned = torch.tensor([0, 1, 2], device=device)
    bound = {"dense": _NEVER, "tiled": 0, "written out": _NEVER}[variant]

    def read() -> Tensor:
        if variant == "written out":
            log_p_NV = sampling_log_softmax(head(hidden_NE), temperature=1.0, banned_token_ids=banned)
            with torch.no_grad():
                entropy(log_p_NV), log_p_NV.argmax(-1) == targets_N
            return log_p_NV.gather(-1, targets_N[:, None])[:, 0]
        values = head(hidden_NE, targets_N, TokenRead(), 1.0, banned)
        assert not isinstance(values, Tensor)
        return values.log_probs

    def call() -> None:
        before, tiled_head.DENSE_BYTES = tiled_head.DENSE_BYTES, bound
        try:
            read().sum().backward()
        finally:
            tiled_head.DENSE_BYTES = before
        hidden_NE.grad = head.weight.grad = None

    return call, hidden_NE.nbytes + head.weight.nbytes


def _print(records: Sequence[dict[str, Any]], small: dict[str, list[float]]) -> None:
    row = "{:>8}  {:>11}  {:>11}  {:>9}  {:>9}"
    print(row.format("tokens", "dense MiB", "tiled MiB", "dense s", "tiled s"))
    for record in records:
        peaks = (record.get(f"{variant}_peak_bytes") for variant in ("dense", "tiled"))
        times = (record.get(f"{variant}_s") for variant in ("dense", "tiled"))
        print(
            row.format(
                f"{record['tokens']:,}",
                *("" if peak is None else f"{peak / 2**20:,.1f}" for peak in peaks),
                *("" if of is None else f"{statistics.median(of):.3f}" for of in times),
            )
        )
        for variant, why in record["failure"].items():
            print(f"          {variant}: {why}")
    head, written = (statistics.median(small[name]) for name in ("dense_s", "written_out_s"))
    print(f"\nquickstart's shape: {1e3 * head:.2f} ms, written out {1e3 * written:.2f} ms, ratio {head / written:.3f}")


if __name__ == "__main__":
    main()
