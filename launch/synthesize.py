"""`ral-synthesize`: visual-anchored demonstrations for the cold start. Describe the picture, reason, anchor.

ral-synthesize experiment=quickstart name=data synthesis.rows=2000
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from ral_system.config.commands import SynthesizeConfig
from ral_system.errors import ConfigError, DataError, SetupError
from ral_system.launch.cli import run_with_config
from ral_system.launch.refused import leaving_nothing

_ABOUT = """
ral-synthesize: write visual-anchored demonstrations for sft, with models on OpenAI-compatible servers or templates.
  ral-synthesize experiment=avar_quickstart name=avar_data
  ral-synthesize experiment=quickstart name=data synthesis.rows=2000; then train with
    data.demonstrations=runs/data/synthesis/demonstrations.jsonl

It writes demonstrations.jsonl, rejected.jsonl and summary.json into runs_dir/name/synthesis.
The same command again continues a synthesis that was interrupted.
"""


def main() -> None:
    """Write demonstrations for the first training questions."""
    run_with_config(synthesize, SynthesizeConfig, about=_ABOUT)


def synthesize(config: SynthesizeConfig) -> None:
    """Fill `synthesis/` in the run folder and print the counts of rows; continue an interrupted synthesis."""
    settings, data = config.synthesis, config.data
    if config.algorithm.response_format != "think_answer":
        raise ConfigError(
            f"algorithm.response_format={config.algorithm.response_format}: demonstrations here have a thought to "
            "anchor; set it to think_answer"
        )
    if settings.rows > data.train_records:
        raise ConfigError(
            f"synthesis.rows={settings.rows} is more than data.train_records={data.train_records}; lower it"
        )
    root = (Path(config.runs_dir) / config.name / "synthesis").resolve()
    with leaving_nothing(root):
        _synthesize(config, root)


def _synthesize(config: SynthesizeConfig, root: Path) -> None:
    settings = config.synthesis
    from rich.console import Console
    from rich.table import Table

    from ral_system.media.store import MediaStore
    from ral_system.observability.jsonl import write_atomically
    from ral_system.observability.progress import StageProgress
    from ral_system.runs.folder import SYNTHESIS, RunFolder
    from ral_system.synthesis.endpoint import EndpointGenerator
    from ral_system.synthesis.pipeline import Synthesis, Tally
    from ral_system.synthesis.rows import ROLES, Generator, Role, Row
    from ral_system.synthesis.template import TemplateGenerator
    from ral_system.tasks.visual_search_prompts import VisualSearchRecords

    run = RunFolder(root)
    run.open(config, SYNTHESIS)
    run.record(config, SYNTHESIS)
    folder, media, began = run.root, MediaStore(run.media), time.monotonic()
    source = VisualSearchRecords(config.data)
    rows = (Row(source.record("train", i)) for i in range(settings.rows))
    generators: dict[Role, Generator] = {
        role: EndpointGenerator(role, settings, media) if getattr(settings, role).endpoint else TemplateGenerator(role)
        for role in ROLES
    }
    synthesis = Synthesis(folder, settings, generators)
    if synthesis.tally.done > settings.rows:
        raise ConfigError(
            f"synthesis.rows={settings.rows}: {folder} already holds {synthesis.tally.done} rows, and training would "
            "use all of them; raise it, or set another name"
        )
    with StageProgress("synthesize", settings.rows, start=synthesis.tally.done) as progress:

        def show(tally: Tally) -> None:
            progress.update(tally.done, {"synthesis/accepted": tally.accepted / max(1, tally.done)})

        tally = asyncio.run(synthesis.run(rows, show))

    table = Table("demonstrations", "rows")
    table.add_row("accepted", str(tally.accepted))
    for (role, reason), count in tally.rejected.most_common(8):
        table.add_row(f"rejected: the {role}'s text: {reason}", str(count))
    if tally.unanswered:
        table.add_row("no answer yet, tried again next time", str(tally.unanswered))
    Console().print(table)
    asked = [g for g in generators.values() if isinstance(g, EndpointGenerator)]
    write_atomically(
        folder / "summary.json",
        json.dumps(
            {
                "rows": settings.rows,
                "accepted": tally.accepted,
                "rejected": {f"{role}: {reason}": count for (role, reason), count in tally.rejected.items()},
                "unanswered": tally.unanswered,
                "prompt_tokens": sum(g.prompt_tokens for g in asked),
                "completion_tokens": sum(g.completion_tokens for g in asked),
                "wall_s": time.monotonic() - began,
            },
            indent=2,
        ),
    )
    if tally.unanswered:
        raise SetupError(f"{tally.unanswered} rows got no answer; run the same command again to try them")
    if not tally.accepted:
        raise DataError(f"none of {tally.done} rows was accepted; {folder}/rejected.jsonl has the reasons")
    print(f"train on them with data.demonstrations={folder}/demonstrations.jsonl")


if __name__ == "__main__":
    main()
