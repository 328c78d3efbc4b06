"""`report.html`: the learning curves, attention and checks of a run, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from ral_system.config.choices import STAGE_TITLES
from ral_system.errors import SetupError
from ral_system.media.store import node_store
from ral_system.observability.jsonl import write_atomically
from ral_system.report.alarms import alarms
from ral_system.report.charts import figure
from ral_system.report.load import Headline, RunData, headline, read_run
from ral_system.report.media import FramesOf, ReportMedia
from ral_system.report.page import page
from ral_system.report.processes import processes
from ral_system.report.rollouts import rollout_sections
from ral_system.report.sections import sections
from ral_system.report.series import Chart
from ral_system.report.svg import scientific

REPORT_FILE = "report.html"


def write_report(run_folder: Path, frames_of: FramesOf | None = None) -> Path:
    """Write `<run_folder>/report.html` from what the folder holds now, and return its path.

    `frames_of` reads videos; without it they are not shown. Raises SetupError when the folder does not exist. Safe to
    call during the run.
    """
    if not run_folder.is_dir():
        raise SetupError(f"run folder {run_folder} does not exist; pass the folder of a run, for example runs/<name>")
    run = read_run(run_folder)
    body = _empty(run) if run.is_empty else _body(run, ReportMedia(run_folder / "media", frames_of))
    path = run_folder / REPORT_FILE
    write_atomically(path, page(f"{run.name} · RAL report", body, script="report.js"))
    return path


def write_run_report(root: Path, cache_gib: float = 0.0) -> Path:
    """Write the report of the run in `root` with frames of its videos.

    With a cache of `cache_gib` GiB, videos that this node's processes have decoded are not decoded again.
    """
    return write_report(root, node_store(root / "media", cache_gib).frames)


def _empty(run: RunData) -> str:
    return (
        f'<header><h1>{escape(run.name)}</h1></header><section class="empty" data-empty>'
        "<p>Nothing has been recorded in this run folder yet.</p>"
        "<p>Metrics appear after the first training step; the report is written again during the run.</p></section>"
    )


def _body(run: RunData, media: ReportMedia) -> str:
    top = headline(run)
    parts = [_header(run, top), _headline(run, top)]
    learning, *others = sections(run)
    parts += [_charts(*learning), alarms(run), *(_charts(*section) for section in others)]
    parts += [processes(run.summary), rollout_sections(run, media)]
    folds = [("config.yaml", run.config_text), ("Versions and commands", _commands(run))]
    if drawn := "".join(_fold(title, text) for title, text in folds if text):
        parts.append(f"<section><h2>Configuration</h2>{drawn}</section>")
    return "".join(parts)


def _charts(title: str, charts: Sequence[Chart]) -> str:
    """Return a section of charts; empty if no value is recorded."""
    drawn = "".join(figure(chart) for chart in charts)
    return f'<section><h2>{escape(title)}</h2><div class="charts">{drawn}</div></section>' if drawn else ""


def _fold(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _commands(run: RunData) -> str:
    """List every command that did part of the run, with its code and packages, oldest first."""
    return "\n\n".join(
        "\n".join(
            [
                f"{command.get('started')}  {command.get('command')}",
                f"  commit {command.get('git_commit') or 'unknown'}{' with changes' * bool(command.get('git_dirty'))}",
                *(f"  {name} {version}" for name, version in (command.get("versions") or {}).items()),
            ]
        )
        for command in run.commands
    )


def _header(run: RunData, top: Headline) -> str:
    total = run.setting("algorithm", "steps")
    step = run.last_step("rl")
    if top.finished:
        state = '<span class="state done">finished</span>'
    elif step is not None:
        state = f'<span class="state">RL step {step}{f" of {total}" if total else ""}</span>'
    else:
        stage = next((s for s in ("sft", "perceive") if run.last_step(s) is not None), None)
        state = f'<span class="state">{STAGE_TITLES[stage] if stage else "starting"}</span>'
    model = run.setting("model", "path") or ("a tiny model" if run.setting("model") else None)
    weight = run.setting("algorithm", "attention", "weight")
    facts = [
        run.setting("algorithm", "name"),
        model,
        f"λ attention {weight:g}" if isinstance(weight, int | float) else None,
        f"rollouts {run.setting('rollout', 'engine')}" if run.setting("rollout", "engine") else None,
        f"learner {run.setting('learner', 'engine')}" if run.setting("learner", "engine") else None,
        f"seed {run.setting('seed')}" if run.setting("seed") is not None else None,
        f"written {datetime.now():%Y-%m-%d %H:%M}",
    ]
    line = " · ".join(escape(str(fact)) for fact in facts if fact)
    return f'<header><h1>{escape(run.name)}{state}</h1><p class="facts">{line}</p></header>'


def _headline(run: RunData, top: Headline) -> str:
    limit = run.setting("rollout", "log_prob_gate", "token")
    steps = " · ".join(f"{STAGE_TITLES.get(s, s)} {n:,}" for s, n in top.steps.items())
    failed = top.gates_failed
    tiles = [
        _tile("format_rate", "Format rate", _percent(top.format_rate), "responses in the required format"),
        _tile("log_prob_diff_max", "Max |Δ log-prob|", _scientific(top.log_prob_diff_max), _limit_note(limit)),
        _tile("gates_failed", "Gates failed", _integer(failed), "checks on every step", bad=bool(failed)),
        _tile("alarms", "Alarms", _integer(top.alarms or None), "steps with an alarm", bad=True),
        _tile("steps", "RL steps", f"{top.steps['rl']:,}" if "rl" in top.steps else None, steps),
        _tile("wall_time", "Wall time", _duration(top.wall_time_s), "all stages"),
    ]
    return f'<div class="headline">{_accuracy(top)}<dl class="tiles">{"".join(tiles)}</dl></div>'


def _accuracy(top: Headline) -> str:
    before, after = top.accuracy_before, top.accuracy_after
    if before is None and after is None:
        return ""
    first, last = _percent(before) or "n/a", _percent(after)
    change = ""
    if before is not None and after is not None:
        points = round(100 * (after - before), 1)
        change = f'<span class="change {"up" if points >= 0 else "down"}">{points:+g} points</span>'
    result = f'<span class="arrow">→</span><b data-headline="accuracy_after">{last}</b>' if last else ""
    note = "after cold start → after RL" if top.finished else "after cold start → newest evaluation"
    numbers = f'<span data-headline="accuracy_before">{first}</span>{result}'
    return (
        f'<div class="hero"><p>Held-out accuracy</p><div>{numbers}</div>'
        f"<p>{note if last else 'after cold start'} {change}</p></div>"
    )


def _tile(name: str, label: str, value: str | None, note: str, bad: bool = False) -> str:
    if value is None:
        return ""
    style = ' class="bad"' if bad else ""
    return (
        f'<div{style}><dt>{escape(label)}</dt><dd data-headline="{name}">{escape(value)}</dd>'
        f"<dd class=note>{escape(note)}</dd></div>"
    )


def _limit_note(limit: object) -> str:
    return (
        f"rollout − learner, limit {_scientific(float(limit))}"
        if isinstance(limit, int | float)
        else "rollout − learner, any token"
    )


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value * 100:.1f}%"


def _scientific(value: float | None) -> str | None:
    if not value:
        return None if value is None else "0"
    return scientific(value)


def _integer(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
