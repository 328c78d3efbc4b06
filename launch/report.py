"""`ral-report RUN_FOLDER`: write the report of a run, finished or not."""

from __future__ import annotations

from pathlib import Path

from ral_system.errors import RalError
from ral_system.launch.arguments import Parser
from ral_system.launch.mistakes import fail


def main() -> None:
    """Write `report.html` into a run folder and print its path."""
    about = "Write report.html for a run, finished or not, and replace an existing report."
    parser = Parser(prog="ral-report", description=about)
    parser.add_argument("run_folder", type=Path, help="folder of the run, for example runs/quickstart")
    folder = parser.parse_args().run_folder
    from ral_system.report.write import write_run_report

    try:
        print(write_run_report(folder))
    except RalError as error:
        fail(error)


if __name__ == "__main__":
    main()
