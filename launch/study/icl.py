"""`ral-study icl`: multimodal in-context regression, where the right attention is known (docs/studies/icl.md)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ral_system.errors import ConfigError, RalError
from ral_system.launch.arguments import Parser
from ral_system.launch.mistakes import explain_import, fail

SEEDS = (0, 1, 2, 3, 4)
_DESCRIPTION = """\
Train linear attention on multimodal in-context regression, whose Bayes predictor is known (arXiv 2602.04872): one layer
cannot reach it, depth can. Then train softmax attention by policy gradient with the attention objectives of this
system, and measure its distance from the optimum. Writes icl.md, icl.json, icl_depth.svg, icl_attention.svg and
icl_alone.svg to --runs-dir/icl. One process, one thread, about a minute.
"""


def main(arguments: Sequence[str]) -> None:
    """Run the study, then write and print its tables."""
    parser = Parser(prog="ral-study icl", description=_DESCRIPTION)
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="folder for the study's folder (%(default)s)"
    )
    own = " ".join(map(str, SEEDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help=f"seeds to run ({own})")
    parser.add_argument(
        "--quick", action="store_true", help="fewer updates and layers: takes a few seconds and gives rough figures"
    )
    options = parser.parse_args(arguments)
    try:
        print(run(options.runs_dir / "icl", options.seeds, options.quick))
    except RalError as error:
        fail(error)
    except ImportError as error:
        fail(explain_import(error))
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


def run(folder: Path, seeds: Sequence[int], quick: bool) -> str:
    """Run every part with every seed. Raises ConfigError for a seed that is given twice or negative."""
    for seed in seeds:
        if seed < 0:
            raise ConfigError(f"--seeds {seed}: is negative; give numbers from 0 on")
        if list(seeds).count(seed) > 1:
            raise ConfigError(f"--seeds {seed}: given twice, and its runs would count twice; remove one")
    import torch

    from ral_system.studies.icl import policy_gradient, regression
    from ral_system.studies.icl.results import Curve, Results, write

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny
    try:
        settings = regression.QUICK if quick else regression.FULL
        schedule = policy_gradient.QUICK if quick else policy_gradient.FULL
        measured = []
        parts = (policy_gradient.ARMS, policy_gradient.ALONE)
        curves: list[dict[str, list[Curve]]] = [{name: [] for name in arms} for arms in parts]
        for seed in seeds:
            print(f"seed {seed}: regression by depth", flush=True)
            measured.append(regression.run(settings, seed))
            print(f"seed {seed}: attention by policy gradient", flush=True)
            for arms, of_part in zip(parts, curves, strict=True):
                for name, arm in arms.items():
                    of_part[name].append(policy_gradient.run(arm, schedule, seed))
    finally:
        torch.set_num_threads(threads)
    found = [{name: tuple(runs) for name, runs in of_part.items()} for of_part in curves]
    return write(Results(tuple(seeds), settings, schedule, tuple(measured), *found), folder)
