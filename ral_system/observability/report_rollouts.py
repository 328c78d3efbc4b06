"""The rollouts of the report: the same prompts before and after RL side by side, and the newest training rollouts."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ral_system.observability.overlay import overlay_frames
from ral_system.observability.report_data import RunData

MAX_PAIRS = 16
MAX_TRAINING = 12
_SHOWN_PX = 168  # a picture's longer side is drawn at about this size
_TAG = re.compile(r"(&lt;/?(?:think|answer)&gt;)")

Record = Mapping[str, Any]


def rollout_sections(run: RunData, media: Path) -> str:
    """Both tables; each is left out when it would be empty."""
    return _before_after(run, media) + _training(run, media)


def _before_after(run: RunData, media: Path) -> str:
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
        note = f"{len(both)} held-out prompts: {gained} turned right, {lost} turned wrong; changed ones first. "
    else:
        note = "Held-out prompts before RL; the answers after RL follow when it ends. "
    note += _legend([*before.values(), *after.values()])
    return (
        f'<section id="before-after"><h2>Before and after RL</h2><p class="lead">{note}</p>'
        '<div class="scroll"><table><thead><tr><th>Question</th><th>Before RL</th><th>After RL</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _training(run: RunData, media: Path) -> str:
    train = [r for r in run.rollouts if r.get("phase") == "train"]
    newest = sorted(train, key=lambda r: -r["step"])[:MAX_TRAINING]
    if not newest:
        return ""
    rows = "".join(
        f'<tr data-rollout="{escape(str(r.get("id", "")))}"><td>{_question(r, media)}</td>'
        f'<td><span class="step">step {r["step"]}</span></td><td>{_answer(r, media, advantage=True)}</td></tr>'
        for r in newest
    )
    return (
        '<section id="training-rollouts"><h2>Newest training rollouts</h2><p class="lead">Sampled, not greedy. '
        f'{_legend(newest)}</p><div class="scroll"><table class="training">'
        "<thead><tr><th>Question</th><th>Step</th><th>Response</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _pair(prompt: str, before: Record | None, after: Record | None, media: Path) -> str:
    either = after or before or {}
    cells = "".join(
        f'<td data-phase="{phase}">{_answer(record, media) if record else "<p class=none>not recorded</p>"}</td>'
        for phase, record in (("before_rl", before), ("after_rl", after))
    )
    return f'<tr data-rollout="{escape(prompt)}"><td>{_question(either, media)}</td>{cells}</tr>'


def _question(record: Record, media: Path) -> str:
    digests = record.get("media") or []
    pictures = "".join(_picture(_load(media, digest), "picture", "the picture") for digest in digests)
    return (
        f'<div class="question">{pictures}<div><span class="kind">{escape(str(record.get("kind", "")))}</span>'
        f"<p>{escape(str(record.get('question', '')))}</p>"
        f'<p class="expected">expected <b>{escape(str(record.get("answer", "")))}</b></p></div></div>'
    )


def _answer(record: Record, media: Path, advantage: bool = False) -> str:
    text = _TAG.sub(r'<span class="tag">\1</span>', escape(str(record.get("response", ""))))
    parts = record.get("reward_parts") or {}
    chips = [_chip(str(name), value) for name, value in parts.items()]
    chips.append(f'<span class="chip total">reward {_number(record.get("reward"))}</span>')
    if advantage:
        chips.append(f'<span class="chip total">advantage {_number(record.get("advantage"), sign=True)}</span>')
    if (status := record.get("status", "ok")) != "ok":
        chips.append(f'<span class="chip bad">reward {escape(str(status))}</span>')
    return (
        f'<div class="answer">{_overlay(record, media)}<div><p class="response">{text}</p>'
        f'<p class="chips">{"".join(chips)}</p></div></div>'
    )


def _chip(name: str, value: Any) -> str:
    good = isinstance(value, int | float) and value >= 0.5
    mark = "✓" if value == 1 else "✗" if value == 0 else _number(value)
    return f'<span class="chip {"good" if good else "bad"}">{escape(name)} {mark}</span>'


def _overlay(record: Record, media: Path) -> str:
    """Every picture with where the answer looks on it, all on one scale."""
    drawn = []
    try:
        maps = [np.array(found, dtype=np.float64) for found in record.get("overlays") or []]
        peak = max((float(np.nanmax(m)) for m in maps), default=0.0)
        for digest, mass in zip(record.get("media") or [], maps, strict=False):
            image = _load(media, digest)
            drawn.append(None if image is None else overlay_frames([image], mass, peak))
    except (TypeError, ValueError):
        return ""
    return "".join(_picture(image, "overlay", "where the answer looks") for image in drawn)


def _picture(image: Image.Image | None, kind: str, alt: str) -> str:
    if image is None:
        return '<span class="missing">picture not in the store</span>'
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img class="{kind}" alt="{alt}" src="data:image/png;base64,{data}">'


def _load(media: Path, digest: str) -> Image.Image | None:
    """The picture at report size: small ones enlarged by whole factors so that cells stay sharp, large ones reduced."""
    path = media / str(digest)[:2] / f"{digest}.image"
    if not re.fullmatch(r"[0-9a-f]+", str(digest)):
        return None
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except OSError:
        return None
    longer = max(image.size)
    if longer > 2 * _SHOWN_PX:
        image.thumbnail((2 * _SHOWN_PX, 2 * _SHOWN_PX))
        return image
    factor = max(1, round(_SHOWN_PX / longer))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _legend(records: Sequence[Record]) -> str:
    if not any(record.get("overlays") for record in records):
        return ""
    return 'Overlay: where the answer\'s rows look, <span class="ramp"></span> none to most.'


def _by_prompt(run: RunData, phase: str) -> dict[str, Record]:
    """Prompt id → its newest record of `phase`. A completion's id is `<prompt>#<index>`."""
    return {str(r.get("id", "")).split("#")[0]: r for r in run.rollouts if r.get("phase") == phase}


def _interest(before: Record | None, after: Record | None) -> int:
    if before is None or after is None:
        return 3
    return 0 if _right(after) and not _right(before) else 1 if _right(before) != _right(after) else 2


def _right(record: Record) -> bool:
    value = (record.get("reward_parts") or {}).get("correctness", record.get("reward"))
    return isinstance(value, int | float) and value >= 0.5


def _number(value: Any, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.2f}" if isinstance(value, int | float) else "n/a"
