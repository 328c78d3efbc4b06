"""`preview.html`: questions as the model reads them, and rows that were left out. One file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Literal

from PIL import Image

from ral_system.observability.jsonl import write_atomically
from ral_system.report.page import frame_strip, page, picture, seconds
from ral_system.types import Layout, MediaKind

PREVIEW_FILE = "preview.html"


@dataclass(frozen=True, slots=True)
class Spread:
    """Spread of a count per prompt. Example: `Spread(median=311, percentile_95=702, largest=1904)`"""

    median: int
    percentile_95: int
    largest: int


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason why rows cannot be used. Example: `Reason("path: … no such file below …", 40, "path: a.png: no such
    …")`"""

    kind: str
    """Reason without the parts that are specific to a row."""
    count: int
    example: str
    """Reason of the first of these rows, verbatim."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Questions of a kind, and the verifier that judges them: one for this kind, or the default."""

    kind: str
    verifier: str
    own: bool
    rows: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """Number of questions of a source in use, and its share, by weight, of the training questions drawn."""

    name: str
    rows: int
    share: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts of used and rejected rows."""

    rows: int
    train: int
    held_out: int
    left_out: Mapping[str, int]
    """Counts of rows that are left out, by cause."""
    reasons: Sequence[Reason]
    """Reasons why rows cannot be used, the most frequent first; perhaps not all."""
    tokens: Spread | None
    """Tokens per prompt, including visual tokens; None without prompts."""
    visual_tokens: Spread | None
    counted: str
    """Prompts that the spreads are computed over, in words."""
    judged: Sequence[Judged] = ()
    """Kinds with their verifiers, the most frequent first."""
    drawn: Sequence[Drawn] = ()
    """Sources with their shares, if there are several."""
    absent: Sequence[str] = ()
    """Fields of configured columns that no row has."""

    @property
    def other_broken(self) -> int:
        """Number of unusable rows whose reason is not among `reasons`."""
        return self.left_out.get("broken", 0) - sum(reason.count for reason in self.reasons)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt: text, one special token, or a run of the token that stands for a medium."""

    kind: Literal["text", "special", "media"]
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class ShownMedium:
    """A picture, or a video's shown frames with their times."""

    kind: MediaKind
    size: tuple[int, int]
    """Width and height in px, as the model sees it."""
    layout: Layout
    """Its visual tokens."""
    frames: Sequence[Image.Image]
    times_s: Sequence[float] = ()
    """Times of the shown frames."""
    sampled: int = 1
    """Frames that the model sees."""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One question."""

    id: str
    kind: str
    prompt: Sequence[Piece]
    media: Sequence[ShownMedium]
    answer: str
    thought: str | None

    @property
    def tokens(self) -> int:
        """Tokens of the prompt."""
        return sum(piece.tokens for piece in self.prompt)

    @property
    def visual_tokens(self) -> int:
        """Tokens of the prompt that stand for media."""
        return sum(piece.tokens for piece in self.prompt if piece.kind == "media")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not used. `given_id` is its id in the file."""

    id: str
    given_id: str | None
    cause: str
    reason: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a preview: the run, the command that made it, and the model that reads the data."""

    name: str
    command: str
    model: str


@dataclass(frozen=True, slots=True)
class Preview:
    """Contents of the page."""

    origin: Origin
    data: str
    """Description of the data, or the folder in which they are prepared."""
    figures: Figures
    train: Sequence[ShownRow]
    held_out: Sequence[ShownRow]
    left_out: Sequence[LeftOut]
    error: str | None = None
    """The reason why no run can use these data yet; the rows are then in their files' order."""
    warnings: Sequence[str] = ()
    """Problems that do not stop a run."""


def write_preview(folder: Path, preview: Preview) -> Path:
    """Write `<folder>/preview.html` and return its path."""
    path = folder / PREVIEW_FILE
    body = _head(preview) + _numbers(preview.figures) + _mix(preview.figures) + _rows_of(preview) + _left_out(preview)
    write_atomically(path, page(f"{preview.origin.name} · data", body, styles=("report.css", "preview.css")))
    return path


def _head(preview: Preview) -> str:
    origin, error = preview.origin, ""
    facts = " · ".join((f"as read by {origin.model}", preview.data, f"written {datetime.now():%Y-%m-%d %H:%M}"))
    if preview.error:
        error = f'<p class="error" role="alert"><b>No run can use these data yet.</b> {escape(preview.error)}</p>'
    error += "".join(f'<p class="error" role="status">{escape(warning)}</p>' for warning in preview.warnings)
    return (
        f'<header><h1>{escape(origin.name)}<span class="state">data</span></h1><p class="facts">{escape(facts)}</p>'
        f'<p class="command"><code>{escape(origin.command)}</code></p></header>{error}'
        '<p class="lead intro">Each question as the model reads it: pictures at the size that it sees, '
        "videos as the frames that it sees (reduced), and the prompt decoded from its token ids. "
        '<span class="special">Special tokens</span> are marked. The repeated token that stands for a medium is '
        'written once, <span class="special media">with its length</span>: frames × rows × columns of visual tokens. '
        "The model sees neither the answer, which is for the verifier, nor the thought, which sft imitates.</p>"
    )


def _numbers(figures: Figures) -> str:
    left = sum(figures.left_out.values())
    causes = ", ".join(f"{count:,} {cause.replace('_', ' ')}" for cause, count in figures.left_out.items())
    tiles = [
        _tile("rows", "Rows", f"{figures.rows:,}", ""),
        _tile("train", "Train", f"{figures.train:,}", ""),
        _tile("held_out", "Held out", f"{figures.held_out:,}", ""),
        _tile("left_out", "Left out", f"{left:,}", causes, bad=bool(figures.left_out.get("broken"))),
        *(
            _tile(name, label, f"{spread.median:,}", f"median · 95 % {spread.percentile_95:,} · max {spread.largest:,}")
            for name, label, spread in (
                ("tokens", "Tokens per prompt", figures.tokens),
                ("visual_tokens", "Visual tokens", figures.visual_tokens),
            )
            if spread
        ),
    ]
    counted = f'<p class="counted">Tokens are counted over {escape(figures.counted)}.</p>' if figures.tokens else ""
    return f'<div class="headline"><dl class="tiles">{"".join(tiles)}</dl>{counted}</div>'


def _mix(figures: Figures) -> str:
    """List the verifier of each kind, the share of each source, and columns without rows."""
    drawn = [
        f"<li>{escape(one.name)}: <b>{one.rows:,}</b> questions, {one.share:.1%} of the training questions drawn</li>"
        for one in figures.drawn
    ]
    judged = [
        f"<li>{escape(one.kind) or 'no kind'} → <b>{escape(judge(one))}</b>, {one.rows:,} questions</li>"
        for one in figures.judged
    ]
    absent = [f"<li>{escape(field)}</li>" for field in figures.absent]
    parts = (("Sources", drawn), ("Verifiers", judged), ("Columns without values", absent))
    lists = [f'<h4>{title}</h4><ul class="reasons">{"".join(lines)}</ul>' for title, lines in parts if lines]
    return f'<section id="mix">{"".join(lists)}</section>' if lists else ""


def judge(one: Judged) -> str:
    """Name the kind's verifier, and say if it is only the default."""
    return one.verifier if one.own else f"{one.verifier} (reward.verifier)"


def _tile(name: str, label: str, value: str, note: str, bad: bool = False) -> str:
    style = ' class="bad"' if bad else ""
    return (
        f'<div{style}><dt>{label}</dt><dd data-figure="{name}">{value}</dd><dd class="note">{escape(note)}</dd></div>'
    )


def _rows_of(preview: Preview) -> str:
    train_order, held_out_order = "in the order of training", "in the order in which they are evaluated"
    if preview.error:
        train_order = held_out_order = "in the order of their file"
    figures = preview.figures
    return _section("train", "Training questions", preview.train, figures.train, train_order) + _section(
        "held-out", "Held-out questions", preview.held_out, figures.held_out, held_out_order
    )


def _section(id: str, title: str, rows: Sequence[ShownRow], total: int, order: str) -> str:
    if not rows:
        return ""
    lead = f"{_share(len(rows), total)}, {order}."
    return f'<section id="{id}"><h2>{title}</h2><p class="lead">{lead}</p>{"".join(map(_row, rows))}</section>'


def _share(shown: int, total: int) -> str:
    return f"The first {shown} of {total:,}" if shown < total else f"All {total:,}"


def _row(row: ShownRow) -> str:
    kind = f'<span class="kind">{escape(row.kind)}</span>' if row.kind else ""
    thought = f"<dt>Thought</dt><dd class=thought>{escape(row.thought)}</dd>" if row.thought else ""
    media = f'<div class="shown">{"".join(map(_medium, row.media))}</div>' if row.media else ""
    counts = f"{row.tokens:,} tokens · {row.visual_tokens:,} visual"
    return (
        f'<article data-row="{escape(row.id)}"><h3><span><b>{escape(row.id)}</b> {kind}</span>'
        f'<span class="value">{counts}</span></h3><div class="sides">{media}'
        f'<div class="texts"><div class="prompt">{"".join(map(_piece, row.prompt))}</div>'
        f"<dl><dt>Answer</dt><dd>{escape(row.answer)}</dd>{thought}</dl></div></div></article>"
    )


def _piece(piece: Piece) -> str:
    text = escape(piece.text)
    if piece.kind == "text":
        return text
    if piece.kind == "special":
        return f'<span class="special">{text}</span>'
    return f'<span class="special media">{text} × {piece.tokens:,}</span>'


def _medium(medium: ShownMedium) -> str:
    width, height = medium.size
    grid = f"{medium.layout} = {medium.layout.tokens:,} visual tokens"
    if medium.kind == "image":
        facts = f"{width} × {height} px · {grid}"
        return f"<figure>{picture(medium.frames[0], 'picture', 'the picture')}<figcaption>{facts}</figcaption></figure>"
    facts = f"{medium.sampled} frames of {medium.duration_s:.1f} s · {width} × {height} px · {grid}"
    shown = len(medium.frames)
    note = f"{shown} of the {medium.sampled} frames are shown" if shown < medium.sampled else ""
    captioned = zip(medium.frames, map(seconds, medium.times_s), strict=True)
    strip = frame_strip(captioned, "picture", "video", note)
    return f"<figure>{strip}<figcaption>{facts}</figcaption></figure>"


def _left_out(preview: Preview) -> str:
    if not preview.left_out:
        return ""
    total = sum(preview.figures.left_out.values())
    lead = f"{_share(len(preview.left_out), total)}, in the order of their file."
    often = "".join(map(_often, preview.figures.reasons))
    if others := preview.figures.other_broken:
        often += f"<li>… and <b>{others:,}</b> others</li>"
    reasons = f'<h4>Most frequent reasons</h4><ul class="reasons">{often}</ul>' if preview.figures.reasons else ""
    rows = "".join(map(_left_row, preview.left_out))
    return (
        f'<section id="left-out"><h2>Left out</h2><p class="lead">{lead}</p>'
        f'{reasons}<ul class="left">{rows}</ul></section>'
    )


def _often(reason: Reason) -> str:
    example = "" if reason.example == reason.kind else f"; for example: {escape(reason.example)}"
    return f"<li><b>{reason.count:,} ×</b> {escape(reason.kind)}{example}</li>"


def _left_row(row: LeftOut) -> str:
    given = f" <span class=kind>{escape(row.given_id)}</span>" if row.given_id else ""
    return (
        f'<li data-left="{escape(row.id)}"><span><b>{escape(row.id)}</b>{given}</span>'
        f'<span class="chip bad">{escape(row.cause.replace("_", " "))}</span><span>{escape(row.reason)}</span></li>'
    )
