"""`ral-data`: a page that shows the data as the model reads them; files are prepared as the run that follows would.

ral-data experiment=video_r1_qwen2_5_vl_7b_8gpu data.sources.main.path=rows.json name=NAME
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import TYPE_CHECKING

from ral_system.config.commands import DataCommandConfig
from ral_system.config.data import FilesConfig
from ral_system.data.sources.hub import check_sources
from ral_system.errors import ConfigError, SetupError
from ral_system.launch.cli import run_with_config
from ral_system.launch.refused import leaving_nothing
from ral_system.models.folders import check_family, check_named

if TYPE_CHECKING:
    from rich.table import Table

    from ral_system.report.preview_page import Figures

_REASON_CHARS = 80


_ABOUT = """
ral-data: prepare data.sources as a run does, and write preview.html with rows as the model reads them.
  ral-data experiment=video_r1_qwen2_5_vl_7b_8gpu data.sources.main.path=rows.json name=look
  ral-data data=files +data/source@data.sources.mine=columns data.sources.mine.path=rows.jsonl 'stages=[rl]' \\
    data.sources.mine.columns.{question=question,answer=answer,images=picture} model.path=MODEL name=look

It writes preview.html into runs_dir/name. ral-train with the same settings uses the prepared files.
"""


def main() -> None:
    """Prepare a run's data and show them."""
    run_with_config(show_data, DataCommandConfig, about=_ABOUT)


def show_data(config: DataCommandConfig) -> None:
    """Write `preview.html` into the run folder and print the counts of used and rejected rows.

    Raises DataError where a run would refuse the data, once the page is written.
    """
    from ral_system.observability.quiet import silence_third_party

    name, field = config.start_model or config.model.path, "start_model" if config.start_model else "model.path"
    if name is not None:
        check_named(field, name)
    elif isinstance(config.data, FilesConfig) and "sft" not in config.stages:
        raise ConfigError(
            f"model.path=null: no model for stages={list(config.stages)}; set model.path or start_model to the model "
            "that will read the data, or stages=[sft,rl], with which a tiny model does"
        )
    silence_third_party()
    if isinstance(config.data, FilesConfig):
        check_sources(config.data.sources)
    if name is not None:
        check_family(field, name)
    folder = (Path(config.runs_dir) / config.name).resolve()
    with leaving_nothing(folder):
        _show(config, field, name, folder)


def _show(config: DataCommandConfig, field: str, name: str | None, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SetupError(
            f"run folder {folder} cannot be written ({problem.strerror}); set runs_dir to a folder that you may write "
            "to, or another name"
        ) from problem
    from rich.console import Console

    from ral_system.models.folders import local_model_folder
    from ral_system.report.preview import preview_data
    from ral_system.report.preview_page import Origin, write_preview
    from ral_system.runs.folder import RunFolder
    from ral_system.tasks.open import QuestionSettings
    from ral_system.tasks.start_model import new_tiny_model

    origin = Origin(config.name, shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), name or "a tiny model")
    with TemporaryDirectory() as scratch:
        if name is None:
            model = new_tiny_model(config.model.tiny, config.data, config.seed, RunFolder(Path(scratch)))
        else:
            model = local_model_folder(field, name, weights=False)
        preview, error = preview_data(
            QuestionSettings.of(config),
            origin,
            model,
            folder.parent,
            Path(scratch) / "media",
            rows=config.logging.preview_rows,
            held_out=config.evaluation.questions,
        )
    page = write_preview(folder, preview)
    console = Console(markup=False, highlight=False)
    console.print(_table(preview.figures))
    console.print(f"preview: {page}", soft_wrap=True)
    for warning in preview.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if error is not None:
        raise error
    if preview.error is not None:
        print(f"warning: {preview.error}", file=sys.stderr)


def _table(figures: Figures) -> Table:
    from rich.table import Table

    from ral_system.report.preview_page import judge

    table = Table(show_header=False)
    for name, count in (("rows", figures.rows), ("train", figures.train), ("held-out", figures.held_out)):
        table.add_row(name, f"{count:,}")
    for cause, count in figures.left_out.items():
        table.add_row(f"left out: {cause.replace('_', ' ')}", f"{count:,}")
        if cause == "broken":
            _add_reasons(table, figures)
    for one in figures.drawn:
        table.add_row(f"source {one.name}: questions, share of draws", f"{one.rows:,}, {one.share:.1%}")
    for judged in figures.judged:
        table.add_row(f"{_short(judged.kind) or 'no kind'} → {judge(judged)}", f"{judged.rows:,}")
    for field in figures.absent:
        table.add_row(_short(field), "not in any row")
    for name, spread in (("tokens", figures.tokens), ("visual tokens", figures.visual_tokens)):
        if spread:
            figure = f"{spread.median:,} / {spread.percentile_95:,} / {spread.largest:,}"
            table.add_row(f"{name} per prompt: median / 95 % / max", figure)
    return table


def _add_reasons(table: Table, figures: Figures) -> None:
    for reason in figures.reasons:
        table.add_row(f"  {_short(reason.kind)}", f"{reason.count:,}")
        if reason.example != reason.kind:
            table.add_row(f"    for example: {_short(reason.example)}", "")
    if figures.other_broken and figures.reasons:
        table.add_row("  … and others", f"{figures.other_broken:,}")


def _short(text: str) -> str:
    return shorten(text, _REASON_CHARS, placeholder="…")


if __name__ == "__main__":
    main()
