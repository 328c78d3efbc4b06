"""The command line of `ral-study`."""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path

from ral_system.errors import RalError
from ral_system.launch.arguments import Parser
from ral_system.launch.mistakes import fail
from ral_system.launch.study import icl
from ral_system.launch.study.files import STUDIES, known_studies, read_study
from ral_system.launch.study.processes import RunError, run_all

_DESCRIPTION = """\
Run the commands of a study, each in its own process, and write the results to study.md, study.jsonl, study.svg,
differences.svg and curves.svg in --runs-dir/NAME. Every run has its own folder there. The same command continues an
interrupted study and skips runs that are complete. An arm that fails does not end the study; the table gives the step
at which it ended.
"""
_EPILOG = """\
  ral-study distill_quickstart                        the teacher, the student, three arms of three seeds
  ral-study avar_quickstart                           AVAR step by step, with the visual attention score of each step
  ral-study visual_tokens_quickstart                  cold start, GRPO and RAL on larger and larger pictures
  ral-study distill_quickstart --dry-run              only print the commands
  ral-study icl                                       attention on a task with a known optimum; see ral-study icl --help
  ral-study my_study.yaml --seeds 0 1 --overrides algorithm.steps=10
  ral-study my_study.yaml --seeds 2 3 --jobs 2 --with elsewhere/study.jsonl
                                                      other seeds here, two runs at a time; results of both
"""


def main() -> None:
    """Run the study, then write and print its table."""
    if sys.argv[1:2] == ["icl"]:
        return icl.main(sys.argv[2:])
    parser = Parser(prog="ral-study", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("study", help=f"one of {known_studies()}, or the path of your own study file")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="folder for the study's folder (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds to run instead of the study's own")
    parser.add_argument(
        "--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every run that reads them"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="number of runs at a time (%(default)s); above 1 their output goes to logs/NAME.log. For "
        "cluster=local; choose cluster.threads_per_process so that all runs fit the cores",
    )
    parser.add_argument(
        "--with",
        dest="others",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="study.jsonl files with other seeds, for example from other machines, to include in the results",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=math.inf,
        metavar="MINUTES",
        help="stop after this many minutes and write the results of complete runs; the same command continues",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands without running them")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs} must be 1 or more")
    if not options.time_limit > 0:
        parser.error(f"--time-limit {options.time_limit:g} must be above 0")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell leaves it ignored in its background jobs
    from ral_system.launch.study.results import read_lines, write_results

    try:
        path = Path(options.study) if options.study.endswith((".yaml", ".yml")) else STUDIES / f"{options.study}.yaml"
        folder = (options.runs_dir / path.stem).resolve()
        study = read_study(path, folder, options.seeds, options.overrides)
        others = read_lines(options.others, study)
        limit_s = 60 * options.time_limit
        failed = run_all(study.runs, folder, options.jobs, dry_run=options.dry_run, limit_s=limit_s)
        if not options.dry_run:
            print(write_results(study, folder, others))
        if failed:
            raise RunError(f"failed or skipped: {', '.join(failed)}", 1)
    except RalError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
