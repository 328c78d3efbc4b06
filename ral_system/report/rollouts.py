"""Rollouts in the report: the same prompts before and after RL side by side, and the newest training rollouts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ral_system.observability.metrics import recorded_media
from ral_system.report.load import RunData
from ral_system.report.media import ReportMedia
from ral_system.types import Media

MAX_PAIRS = 16
MAX_TRAINING = 12
_TAG = re.compile(r"(&lt;/?(?:think|answer)&gt;)")

Record = Mapping[str, Any]


def rollout_sections(run: RunData, media: ReportMedia) -> str:
    """Return both tables; an empty one is left out."""
    return _before_after(run, media) + _training(run, media)


def _before_after(run: RunData, media: ReportMedia) -> str:
    before, after = _by_prompt(run, "before_rl"), _by_prompt(run, "after_rl")
    prompts = list(dict.fromkeys([*before, *after]))
    if not prompts:
        return ""
    prompts.sort(key=lambda prompt: _interest(before.get(prompt), after.get(prompt)))
    rows = "".join(_pair(prompt, before.get(prompt), after.get(prompt), media) for prompt in prompts[:MAX_PAIRS])
    both = [(before[p], after[p]) for p in prompts if p in before and p in after]
    gained = sum(_right(new) and not _right(old) for old, new in both)
    lost = sum(_right(old) and not _right(new) for old, new in both)
    if both:
        note = f"{len(both)} held-out prompts: {gained} became right, {lost} became wrong; changed ones first. "
    else:
        note = "Held-out prompts before RL. The answers after RL are added when it ends. "
    note += _legend([*before.values(), *after.values()])
    return (
        f'<section id="before-after"><h2>Before and after RL</h2><p class="lead">{note}</p>'
        '<div class="scroll"><table><thead><tr><th>Question</th><th>Before RL</th><th>After RL</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _training(run: RunData, media: ReportMedia) -> str:
    groups: dict[tuple[int, str], list[Record]] = {}
    for record in run.rollouts:
        if record.get("phase") == "train":
            groups.setdefault((-record["step"], _prompt_id(record)), []).append(record)
    newest = [record for key in sorted(groups) for record in _extremes(groups[key])][:MAX_TRAINING]
    if not newest:
        return ""
    rows = "".join(
        f'<tr data-rollout="{escape(str(r.get("id", "")))}"><td>{question_cell(r, media)}</td>'
        f'<td><span class="step">step {r["step"]}</span></td><td>{_answer(r, media, advantage=True)}</td></tr>'
        for r in newest
    )
    return (
        '<section id="training-rollouts"><h2>Newest training rollouts</h2><p class="lead">Sampled responses: those '
        "with the lowest and the highest reward of each group. "
        f'{_legend(newest)}</p><div class="scroll"><table class="training">'
        "<thead><tr><th>Question</th><th>Step</th><th>Response</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _extremes(group: Sequence[Record]) -> list[Record]:
    """Return the records with the lowest and the highest reward; only the first if all are equal."""
    lowest, highest = (choose(group, key=lambda r: r.get("reward") or 0.0) for choose in (min, max))
    return [lowest, highest] if lowest is not highest else [lowest]


def _pair(prompt: str, before: Record | None, after: Record | None, media: ReportMedia) -> str:
    either = after or before or {}
    cells = "".join(
        f'<td data-phase="{phase}">{_answer(record, media) if record else "<p class=none>not recorded</p>"}</td>'
        for phase, record in (("before_rl", before), ("after_rl", after))
    )
    return f'<tr data-rollout="{escape(prompt)}"><td>{question_cell(either, media)}</td>{cells}</tr>'


def question_cell(record: Record, media: ReportMedia) -> str:
    """Draw media, kind, question and the expected answer."""
    shown = _media(record)
    return (
        f'<div class="question{_wide(shown)}">{"".join(map(media.plain, shown))}'
        f'<div><span class="kind">{escape(str(record.get("kind", "")))}</span>'
        f"<p>{escape(str(record.get('question', '')))}</p>"
        f'<p class="expected">expected <b>{escape(str(record.get("answer", "")))}</b></p></div></div>'
    )


def _answer(record: Record, media: ReportMedia, advantage: bool = False) -> str:
    parts = record.get("reward_parts") or {}
    chips = [chip(str(name), value) for name, value in parts.items()]
    chips.append(f'<span class="chip total">reward {_number(record.get("reward"))}</span>')
    if advantage:
        chips.append(f'<span class="chip total">advantage {_number(record.get("advantage"), sign=True)}</span>')
    if (status := record.get("status", "ok")) != "ok":
        detail = f": {record['detail']}" if record.get("detail") else ""
        chips.append(f'<span class="chip bad">reward {escape(str(status))}{escape(detail)}</span>')
    return (
        f'<div class="answer{_wide(_media(record))}">{_overlay(record, media)}<div>'
        f'<p class="response">{response_text(record)}</p><p class="chips">{"".join(chips)}</p></div></div>'
    )


def response_text(record: Record) -> str:
    """Format a response with the template's tags highlighted."""
    return _TAG.sub(r'<span class="tag">\1</span>', escape(str(record.get("response", ""))))


def chip(name: str, value: Any) -> str:
    """Draw a part of a verdict."""
    good = isinstance(value, int | float) and value >= 0.5
    mark = "✓" if value == 1 else "✗" if value == 0 else _number(value)
    return f'<span class="chip {"good" if good else "bad"}">{escape(name)} {mark}</span>'


def _overlay(record: Record, media: ReportMedia) -> str:
    """Draw the attention of an answer over its pictures and videos, all on one scale."""
    try:
        maps = [np.array(found, dtype=np.float64) for found in record.get("overlays") or []]
        peak = max((float(np.nanmax(m)) for m in maps), default=0.0)
        pictures_first = sorted(_media(record), key=lambda medium: medium.kind)
        return "".join(media.overlaid(one, mass, peak) for one, mass in zip(pictures_first, maps, strict=False))
    except (TypeError, ValueError):
        return ""


def _media(record: Record) -> list[Media]:
    try:
        return recorded_media(record)
    except (AttributeError, KeyError, TypeError):
        return []


def _wide(media: Sequence[Media]) -> str:
    """Return the CSS class for a record with a video, whose frames are above the text instead of beside it."""
    return " wide" if any(medium.clip for medium in media) else ""


def _legend(records: Sequence[Record]) -> str:
    if not any(record.get("overlays") for record in records):
        return ""
    videos = any(_wide(_media(record)) for record in records)
    shares = " Below each frame: its time and its share of all attention." if videos else ""
    return f'Overlay: attention of the answer, <span class="ramp"></span> from none to most.{shares}'


def _by_prompt(run: RunData, phase: str) -> dict[str, Record]:
    """Map each prompt's id to its newest record of `phase`. A completion's id is `<prompt>#<index>`."""
    return {_prompt_id(r): r for r in run.rollouts if r.get("phase") == phase}


def _prompt_id(record: Record) -> str:
    return str(record.get("id", "")).split("#")[0]


def _interest(before: Record | None, after: Record | None) -> int:
    if before is None or after is None:
        return 3
    return 0 if _right(after) and not _right(before) else 1 if _right(before) != _right(after) else 2


def _right(record: Record) -> bool:
    value = (record.get("reward_parts") or {}).get("correctness", record.get("reward"))
    return isinstance(value, int | float) and value >= 0.5


def _number(value: Any, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.2f}" if isinstance(value, int | float) else "n/a"
