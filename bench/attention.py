"""`python -m bench.attention`: what the attention term costs in time and memory.

Needs torch and transformers only, triton for the fused kernels: it runs on a machine without Ray, vLLM or DeepSpeed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ral_system.launch.arguments import Parser

_DESCRIPTION = """\
Measures the attention term of the loss: the divergence of R attention rows from old ones, forward and backward.

  eager_full  from probabilities [H, T, T] of all positions, as models return them
  dense       from probabilities [H, R, T] of the rows, in autograd's own operations
  chunked     a block of rows at a time: memory linear in the tokens
  triton      the same in fused kernels; needs CUDA
  sdpa        the layer's own causal attention, to compare with

Then a step of a few decoder layers with the term and without, and the scoring of old attention beside the forward
pass that yields old log-probs. On CUDA the shapes are those of a 7B model in bfloat16, on CPU small ones in float32.
What fails, for want of memory or else, is recorded with its reason and does not end the run.
"""
_EPILOG = """\
Writes attention_<device>.json (every raw figure) and attention_<device>.svg into --out, prints the targets last.
Exit codes: 0 measured, whatever the targets say; 2 wrong arguments.

  python -m bench.attention --quick --out /tmp/bench      seconds: does it run?
  python -m bench.attention                               minutes: the figures
  python -m bench.attention --tokens 4096 65536           other lengths
"""


def main() -> None:
    """Measure, write the figures, and print the verdict."""
    parser = Parser(prog="python -m bench.attention", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds; its figures mean nothing")
    parser.add_argument("--tokens", type=_positive, nargs="+", metavar="T", help="sequence lengths")
    parser.add_argument("--layers", type=_positive, metavar="N", help="decoder layers to measure (default 4)")
    parser.add_argument(
        "--threads", type=_positive, metavar="N", help="CPU threads; 1 gives steady figures on a machine that is shared"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder (default %(default)s)")
    options = parser.parse_args()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}")
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch: child processes inherit it
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    _run(options)


def _run(options: argparse.Namespace) -> None:
    import torch

    from bench.layer import measure_layer
    from bench.machine import commit, processor, versions
    from bench.measure import MEMORY_METHOD, TIME_METHOD
    from bench.plan import plan
    from bench.plot import draw
    from bench.stack import measure_stack
    from bench.targets import Records, judge
    from ral_system.config.choices import Device

    cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    device: Device = "cuda" if cuda else "cpu"
    tokens = tuple(sorted(set(options.tokens))) if options.tokens else None
    sizes = plan(device, quick=options.quick, tokens=tokens, stack_layers=options.layers)
    began, load = time.perf_counter(), os.getloadavg()[0]
    records = Records(measure_layer(sizes, _say), measure_stack(sizes, _say))
    targets = judge(records, device, quick=options.quick)
    name = torch.cuda.get_device_name() if cuda else processor()
    found = {
        "device": {"kind": device, "name": name, "threads": torch.get_num_threads()},
        "versions": versions(("torch", "triton", "transformers")),
        "commit": commit(),
        "quick": options.quick,
        "seconds": round(time.perf_counter() - began, 1),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "method": {"time": TIME_METHOD[device], "memory": MEMORY_METHOD[device]},
        "config": asdict(sizes),
        "layer": records.layer,
        "stack": records.stack,
        "targets": targets,
    }
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") if cuda else "cpu"
    stem = options.out / f"attention_{slug}{'_quick' if options.quick else ''}"
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    title = (
        f"Attention term, {name}: {sizes.rows} rows, {sizes.query_heads} heads of {sizes.head_dim}, "
        f"{sizes.key_heads} key heads, {sizes.dtype}"
    )
    stem.with_suffix(".svg").write_text(draw(records, title), encoding="utf-8")
    _say(f"{stem}.json, {stem}.svg ({found['seconds']} s)\n")
    _print_layer(records)
    _print_targets(targets)


def _print_layer(records: Any) -> None:
    row = "{:>8}  {:<10}  {:>9}  {:>9}  {:>7}  {:>7}  {:>9}"
    print(row.format("tokens", "variant", "fwd ms", "f+b ms", "/ sdpa", "/ dense", "peak MiB"))
    for record in records.layer:
        variant, tokens = record["variant"], record["tokens"]
        if "forward_backward_s" not in record:
            print(f"{tokens:>8,}  {variant:<10}  {record['failure']}")
            continue
        peak = records.peak(variant, tokens)
        cells = (
            _cell(records.seconds(variant, tokens, "forward_s"), 1000, 2),
            _cell(records.seconds(variant, tokens), 1000, 2),
            _cell(records.ratio(variant, "sdpa", tokens), 1, 3),
            _cell(records.ratio(variant, "dense", tokens), 1, 3),
            _cell(peak, 1 / 2**20, 1),
        )
        print(row.format(f"{tokens:,}", variant, *cells))


def _print_targets(targets: list[dict[str, Any]]) -> None:
    width = max(len(t["target"]) for t in targets)
    print(f"\n{'target':<{width}}  {'at most':>7}  {'found':>7}  verdict")
    for t in targets:
        note = f" ({t['note']})" if t["note"] else ""
        value = "" if t["value"] is None else f"{t['value']:.3g}"
        print(f"{t['target']:<{width}}  {t['limit']:>7g}  {value:>7}  {t['status']}{note}")


def _cell(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{value * factor:,.{digits}f}"


def _say(line: str) -> None:
    print(line, flush=True)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


if __name__ == "__main__":
    main()
