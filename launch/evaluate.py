"""`ral-evaluate`: accuracy of a model folder on held-out questions or a benchmark, and where its questions look.

ral-evaluate experiment=quickstart start_model=runs/quickstart/model evaluation.questions=500
ral-evaluate experiment=video_r1_qwen2_5_vl_7b_8gpu start_model=MODEL name=vstar \\
    evaluation.benchmark.name=vstar evaluation.benchmark.folder=/data/vstar
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from ral_system.config.commands import EvaluateConfig
from ral_system.config.data import FilesConfig
from ral_system.data.sources.hub import check_sources
from ral_system.errors import ConfigError
from ral_system.launch.cli import run_with_config
from ral_system.launch.refused import leaving_nothing
from ral_system.models.folders import check_family, check_named
from ral_system.registry import BENCHMARKS
from ral_system.runs.folder import RunFolder

ABOUT = f"""
ral-evaluate: measure the accuracy of start_model on held-out questions or a benchmark, and where its answers look.
  ral-evaluate experiment=quickstart start_model=runs/quickstart/model evaluation.questions=500
  ral-evaluate experiment=video_r1_qwen2_5_vl_7b_8gpu start_model=MODEL evaluation.benchmark.{{name=vstar,folder=DIR}}
  ral-evaluate … sweep=visual_tokens 'sweep.values=[512,1024]'      the benchmark at two picture sizes
  ral-evaluate … intervention.image=0.15 intervention.system=0.4    also with steered attention, for comparison
{fill(f"evaluation.benchmark.name is one of {', '.join(BENCHMARKS.names)}.", 110, subsequent_indent="  ")}

It writes evaluation.json, scores.jsonl and answers.html into runs_dir/name, or sweep.json and sweep.svg.
The same command again continues an evaluation that was interrupted.
"""


def main() -> None:
    """Evaluate `start_model` on held-out questions."""
    run_with_config(evaluate_model, EvaluateConfig, about=ABOUT)


def evaluate_model(config: EvaluateConfig) -> float | None:
    """Print a table of figures with their 95 % intervals; write `evaluation.json`, the answers and their scores into
    the run folder. Return the headline figure, None for a sweep.

    The held-out questions of `data`, with a column for the steered model if there is an intervention and the map
    `visual_score.svg`; or those of a benchmark; or a sweep of either.
    """
    if config.start_model is None and not config.sweep.models:
        raise ConfigError("start_model=null: no model to evaluate; set it, for example to runs/quickstart/model")
    named = {f"sweep.models.{name}": path for name, path in config.sweep.models.items()}
    named = named or {"start_model": str(config.start_model)}
    for field, name in named.items():
        check_named(field, name)
    from ral_system.observability.quiet import silence_third_party

    silence_third_party()
    if isinstance(config.data, FilesConfig) and config.evaluation.benchmark.name is None:
        check_sources(config.data.sources)
    for field, name in named.items():
        check_family(field, name)
    from ral_system.evaluation.run import evaluate

    folder = (Path(config.runs_dir) / config.name).resolve()
    with leaving_nothing(folder):
        run = RunFolder(folder)
        run.take()
        return evaluate(config, folder)


if __name__ == "__main__":
    main()
