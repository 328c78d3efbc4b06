"""`ral-correlate FOLDER…`: whether models that look more at pictures answer better, from several evaluations."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ral_system.errors import ConfigError, RalError
from ral_system.launch.arguments import Parser
from ral_system.launch.mistakes import fail
from ral_system.report.scatter import Point, scatter

_EPILOG = """\
First evaluate each model into its own folder, then compare them:
  ral-evaluate experiment=quickstart start_model=runs/quickstart/models/sft name=eval_sft
  ral-evaluate experiment=quickstart start_model=runs/quickstart/model name=eval_rl
  ral-correlate runs/eval_*
Prints Pearson's r of accuracy with the visual attention score and with its two masses, and draws correlation.svg.
"""
FIGURES = ("visual_attention_score", "visual_mass", "system_mass")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Results of `ral-evaluate` in one folder."""

    name: str
    accuracy: float
    figures: dict[str, float]


def main() -> None:
    """Print the table and the correlations, draw the scatter plot."""
    parser = Parser(
        prog="ral-correlate",
        description="Correlate accuracy with the visual attention score over models (arXiv 2603.03825, Fig 1).",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="run folder with an evaluation.json; give at least 3"
    )
    parser.add_argument("--out", type=Path, default=Path("correlation.svg"), help="file for the plot (%(default)s)")
    options = parser.parse_args()
    try:
        found = sorted((read_evaluation(folder) for folder in options.folders), key=lambda e: e.accuracy)
        if len(found) < 3:
            raise ConfigError(f"{len(found)} folders are too few for a correlation; give at least 3")
        report(found, options.out)
    except RalError as error:
        fail(error)


def report(found: Sequence[Evaluated], out: Path) -> None:
    """Print the table and the correlations, and draw the plot."""
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "accuracy", *(name.replace("_", " ") for name in FIGURES))
    for e in found:
        table.add_row(e.name, f"{e.accuracy:.3f}", *(f"{e.figures[name]:.3f}" for name in FIGURES))
    console = Console()
    console.print(table)
    accuracies = [e.accuracy for e in found]
    for name in FIGURES:
        console.print(
            f"r(accuracy, {name.replace('_', ' ')}) = {correlation([e.figures[name] for e in found], accuracies)}"
        )
    r = correlation([e.figures["visual_attention_score"] for e in found], accuracies)
    points = [Point(e.figures["visual_attention_score"], e.accuracy, e.name) for e in found]
    title = f"Accuracy and visual attention score of {len(found)} models: r = {r}"
    try:
        out.write_text(scatter(points, title, "visual attention score", "held-out accuracy"), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None
    console.print(f"{out} is written")


def read_evaluation(folder: Path) -> Evaluated:
    """Read the evaluation of a folder. Raises ConfigError if there is none, or one without the score."""
    path = folder / "evaluation.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; run ral-evaluate … name={folder.name} first") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if missing := [name for name in ("eval/accuracy", *FIGURES) if name not in found]:
        raise ConfigError(f"{path} has no {missing[0]}; evaluate again with evaluation.attention_questions=100")
    return Evaluated(folder.name, found["eval/accuracy"], {name: found[name] for name in FIGURES})


def correlation(x: Sequence[float], y: Sequence[float]) -> str:
    """Format Pearson's r with two digits; it is not defined if all figures are equal."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return "not defined"
    return f"{statistics.correlation(x, y):.2f}"


if __name__ == "__main__":
    main()
