"""`python -m bench.kernels`: compile the attention kernels for a GPU that this machine need not have."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ral_system.launch.arguments import Parser

_DESCRIPTION = """\
Compiles every Triton kernel of the attention term down to machine code for NVIDIA GPUs, and prints what each
program takes of one: registers per thread, stack (registers that did not fit, spilled to slow memory), shared memory.
No GPU is needed. It says whether the kernels build and fit, not how fast or how right they are: see
`python -m bench.attention` and `pytest -m gpu tests/gpu`.
"""
_EPILOG = "Exit codes: 0 all of them fit; 1 one does not compile, spills or needs too much; 2 wrong arguments."

SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Compute capability × 10 → KiB of shared memory that a program may have."""
SPILL_LIMIT = 64
"""Bytes of stack per thread that are still called fitting: a few of them cost nothing that can be measured."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_ELEMENT = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
_TYPES = {
    **{"rows_R": "*i64", "last_row": "*i64", "branches": "*i64", "key_mask": "*u8", "positions": "*i32"},
    "scale": "fp32",
}
_INTEGERS = {"window", "mixed", "slopes_stride", "width", "row_count", "tokens", "heads", "group"}


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources of a program of a compiled kernel."""

    registers: int
    stack: int
    """Bytes per thread."""
    shared: int
    """Bytes per program."""

    def fits(self, capability: int) -> bool:
        """Return whether a GPU of that capability runs it with almost no spilling."""
        return self.stack <= SPILL_LIMIT and self.shared <= SHARED_LIMIT[capability] * 1024


def main() -> None:
    """Compile, and print the table."""
    parser = Parser(prog="python -m bench.kernels", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument(
        "--capability",
        type=int,
        nargs="+",
        choices=sorted(SHARED_LIMIT),
        default=[80, 90],
        metavar="C",
        help=f"compute capability × 10: {', '.join(map(str, SHARED_LIMIT))}; 80 is an A100, 90 an H100 (default: both)",
    )
    parser.add_argument("--head-dim", type=int, nargs="+", default=[128], metavar="D", help="head widths (default 128)")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["bfloat16"], help="(default bfloat16)")
    options = parser.parse_args()
    if importlib.util.find_spec("triton") is None:
        parser.error("triton is not installed; pip install triton")
    row = "{:>4}  {:<8}  {:>4}  {:<14}  {:>9}  {:>8}  {:>10}  {}"
    print(row.format("cc", "dtype", "D", "kernel", "registers", "stack B", "shared KiB", ""))
    good = True
    for capability in options.capability:
        for dtype in options.dtype:
            for dim in options.head_dim:
                for name, usage in compiled(capability, dim, dtype):
                    fits = usage.fits(capability)
                    good &= fits
                    cells = usage.registers, usage.stack, f"{usage.shared / 1024:.0f}", "" if fits else "does not fit"
                    print(row.format(capability, dtype, dim, name, *cells), flush=True)
    sys.exit(0 if good else 1)


def compiled(capability: int, dim: int, dtype: str) -> Iterator[tuple[str, Usage]]:
    """Every kernel as `FusedKernels` launches it, with branches, a key mask and a window."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ral_system.attention import fused, fused_kernels

    launch = fused.launch_options(dim, DTYPES[dtype])
    options = {name: launch.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    constants = {"D": dim, "SPAN": fused.SPAN, **launch}
    for name in fused.KERNELS:
        kernel: Any = getattr(fused_kernels, name)
        types = {a: "constexpr" if a in constants else _type(a, dtype) for a in kernel.arg_names}
        source = ASTSource(
            fn=kernel,
            signature=types,
            constexprs={(i,): constants[a] for i, a in enumerate(types) if a in constants},
            attrs={(i,): [["tt.divisibility", 16]] for i, a in enumerate(types) if types[a].startswith("*")},
        )
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        yield name, _usage(binary.asm["cubin"], binary.metadata.shared)


def _type(argument: str, dtype: str) -> str:
    if argument in ("query_RHD", "key_KTD"):
        return _ELEMENT[dtype]
    return _TYPES.get(argument) or ("i32" if argument in _INTEGERS else "*fp32")


def _usage(machine_code: bytes, shared: int) -> Usage:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        found = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", found)
    assert match, found
    return Usage(int(match[1]), int(match[2]), shared)


if __name__ == "__main__":
    main()
