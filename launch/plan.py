"""`ral-plan`: estimates of the memory, operations and time of a run, before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ral_system.config.commands import PlanCommandConfig
from ral_system.errors import ConfigError
from ral_system.launch.cli import run_with_config
from ral_system.models.folders import check_family, check_named

_ABOUT = """
ral-plan: estimate the memory, operations and time of a run's stages on this or another device. It starts nothing.
  ral-plan experiment=ral_qwen2_5_vl_7b_8gpu plan.device=h200
  ral-plan experiment=video_r1_qwen2_5_vl_7b_8gpu data.sources.main.path=rows.json
  ral-plan experiment=quickstart plan.device=cpu

It reads the model's configuration and tokenizer, not its weights; passes run on tensors without data. Exit code 2: the
run does not fit, and a line says which setting to change.
"""


def main() -> None:
    """Plan a run."""
    run_with_config(show_plan, PlanCommandConfig, about=_ABOUT)


def show_plan(config: PlanCommandConfig) -> None:
    """Print the plan. Raises ConfigError for a run that does not fit."""
    name, field = config.start_model or config.model.path, "start_model" if config.start_model else "model.path"
    if name is not None:
        check_named(field, name)
    from rich.console import Console

    from ral_system.models.folders import local_model_folder
    from ral_system.observability.quiet import silence_third_party
    from ral_system.planning.page import print_plan
    from ral_system.planning.plan import make_plan
    from ral_system.tasks.tiny_model import write_tiny_model
    from ral_system.tasks.vocabulary import tiny_tokenizer
    from ral_system.weights.transfer.opening import configured_transfer

    silence_third_party()
    if name is not None:
        check_family(field, name)
    configured_transfer(config.rollout, config.algorithm, config.cluster)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    with TemporaryDirectory() as temporary:
        if name is None:
            folder = Path(temporary)
            tiny = config.model.tiny
            write_tiny_model(folder, tiny_tokenizer(tiny, config.data), seed=config.seed, **tiny.sizes)
        else:
            folder = local_model_folder(field, name, weights=False)
        teachers = [local_model_folder(teacher.field, teacher.path, weights=False) for teacher in config.teachers]
        plan = make_plan(config, config.plan, folder, teachers)
    print_plan(config, plan, console)
    if plan.problems:
        raise ConfigError(*plan.problems)


if __name__ == "__main__":
    main()
