"""The command line of `python -m bench.peers`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.peers.workloads import WORKLOADS
from ral_system.launch.arguments import Parser

_DESCRIPTION = """\
Measures seconds per batch of GRPO training: TRL's GRPOTrainer and ral_system with its attention term, in turn, on the
same model, prompts, pictures, responses per prompt, updates and length of responses. CPU only.

TRL is installed once into .bench/peers/packages (network, seconds) and runs on the torch and transformers that are
here. Each side is a process; its first batch is not counted. The table says what was equal and what was not.

"""
_EPILOG = """\
Writes --out (every raw time, versions, settings) after each workload, and prints the table last.
Exit codes: 0 measured; 1 a side failed, in one line; 2 wrong arguments.

  python -m bench.peers --dry-run                                   a minute or two: is everything in place?
  python -m bench.peers                                             about half an hour: the figures
  python -m bench.peers --workloads videos --rounds 5               one workload
  python -m bench.peers --ours local ray --out ray.json             also with Ray, vLLM and two DeepSpeed ranks
  python -m bench.peers --model runs/quickstart/models/sft --workloads quickstart     responses as trained
"""
_WIDTH = max(map(len, WORKLOADS))
_LISTED = "".join(f"  {name:<{_WIDTH}}  {workload.about}\n" for name, workload in WORKLOADS.items())


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m bench.peers", description=_DESCRIPTION + _LISTED, epilog=_EPILOG)
    add = parser.add_argument
    add("--dry-run", action="store_true", help="check the set-up with one round of one small batch each")
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME", help="(default all)")
    add("--ours", nargs="+", choices=("local", "ray"), default=["local"], help="cluster of ral_system (default local)")
    add("--rounds", type=_positive, default=3, metavar="N", help="number of turns of each side (default 3)")
    add("--batches", type=_positive, metavar="N", help="number of measured batches per process (default 10)")
    add("--model", type=_folder, metavar="FOLDER", help="trained model to start from (default random weights)")
    add("--kl", type=float, default=0.0, metavar="BETA", help="KL to a reference, on both sides (default 0: none)")
    add("--threads", type=_positive, metavar="N", help="threads of a process (default all cores; cluster=ray 1)")
    add("--peer-threads", type=_positive, metavar="N", help="threads of TRL (default --threads, or all cores)")
    add(
        "--peer-micro-batch",
        type=_positive,
        default=32,
        metavar="N",
        help="largest number of sequences in a forward pass of TRL, at most an update (default 32)",
    )
    add("--out", type=Path, metavar="FILE", help="(default docs/benchmarks/peers.json; with --dry-run none)")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _folder(text: str) -> Path:
    if not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not a model folder: it has no config.json")
    return Path(text).resolve()
