"""From a row of somebody's file to a question, and what makes a row unusable."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, get_args

from ral_system.config.schema import ColumnsConfig
from ral_system.data.sources.files import path_below, shortened
from ral_system.errors import DataError
from ral_system.types import MARKS, MediaKind

MAX_QUESTION_CHARS = 50_000

_LARGEST = 1e300
_MAX_THOUGHT_CHARS = 200_000
_MAX_ANSWER_CHARS = 50_000
_MAX_KIND_CHARS = 100
_MAX_ID_CHARS = 100
_LETTER, _LETTERED = re.compile(r"\(?[A-Z][.)]?"), re.compile(r"\(?[A-Z][.):]")
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded picture or video: its bytes, or a file that holds them."""

    kind: MediaKind
    encoded: bytes | None
    path: Path | None
    start_s: float = 0.0
    """Of the stretch of a video that is meant; `end_s` None: to its end."""
    end_s: float | None = None
    frames_per_s: float | None = None
    """Then `path` is a folder of the video's frames."""


@dataclass(frozen=True, slots=True)
class Question:
    """A usable row."""

    id: str | None
    kind: str
    text: str
    """With as many marks (`MARKS`) as there are media of each kind, or none at all."""
    answer: str
    thought: str | None
    media: tuple[Encoded, ...]
    """In the order of the marks; pictures first where there are none."""


def read_question(fields: Mapping[str, Any], columns: ColumnsConfig, root: Path, *, thoughts: bool = True) -> Question:
    """The row's question; media are named, not opened. Paths are below `root`. Without `thoughts` these are not read.

    Raises DataError with a reason that names the column.
    """
    text = _text(_value(fields, columns.question), columns.question)
    options = _options(_value(fields, columns.options, missing=None), columns.options) if columns.options else []
    answer = _answer(_value(fields, columns.answer), columns.answer)
    if options:
        options, answer = _choices(options, answer, columns.answer)
    text = "\n".join([text, *options])
    if len(text) > MAX_QUESTION_CHARS:
        raise DataError(f"{columns.question}: {len(text):,} characters, at most {MAX_QUESTION_CHARS:,}")
    media = _in_order(text, _media(fields, columns, root), columns.question)
    return Question(
        id=given_id(fields, columns),
        kind=_kind(fields, columns),
        text=text,
        answer=answer,
        thought=_thought(_value(fields, columns.thought), columns.thought) if columns.thought and thoughts else None,
        media=media,
    )


def given_id(fields: Mapping[str, Any], columns: ColumnsConfig) -> str | None:
    """The row's own id, where it has one; not longer than one reads."""
    id = _value(fields, columns.id, missing=None) if columns.id else None
    return None if id is None else str(id)[:_MAX_ID_CHARS]


def _kind(fields: Mapping[str, Any], columns: ColumnsConfig) -> str:
    kind = _value(fields, columns.kind, missing=None) if columns.kind else None
    if kind is None or kind == "":
        return ""
    if isinstance(kind, (int, float)):
        return str(kind)
    return _short(_text(kind, str(columns.kind)), str(columns.kind), _MAX_KIND_CHARS)


def _short(text: str, column: str, most: int) -> str:
    if len(text) > most:
        raise DataError(f"{column}: {len(text):,} characters, at most {most:,}")
    return text


_REQUIRED = object()


def _value(fields: Any, column: str, missing: Any = _REQUIRED) -> Any:
    """What a dotted name leads to."""
    found = fields
    for part in column.split("."):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, Sequence) and not isinstance(found, str) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif missing is _REQUIRED:
            raise DataError(f"{column}: not in the row")
        else:
            return missing
    return found


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{column}: not text but {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{column}: empty")
    if "\x00" in value:
        raise DataError(f"{column}: holds a zero byte")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{column}: holds half a character (a lone surrogate), or bytes that are not UTF-8") from None
    return value.strip()


def _answer(value: Any, column: str) -> str:
    """Text without the tags that some formats put around it; a number as it is written."""
    if isinstance(value, bool) or value is None:
        raise DataError(f"{column}: not an answer but {value}")
    if isinstance(value, (int, float)):
        if abs(value) > _LARGEST or value != value:
            raise DataError(f"{column}: {'nan' if value != value else 'a number beyond 1e300'} is no answer")
        return repr(value)
    return _short(_unwrapped(value, "answer", column), column, _MAX_ANSWER_CHARS)


def _thought(value: Any, column: str) -> str:
    thought = _unwrapped(value, "think", column)
    if len(thought) > _MAX_THOUGHT_CHARS:
        raise DataError(f"{column}: {len(thought):,} characters, at most {_MAX_THOUGHT_CHARS:,}")
    return thought


def _unwrapped(value: Any, tag: str, column: str) -> str:
    """Text without the pair of tags around it, if there is one, and without any other."""
    text = _text(value, column)
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.startswith(opening) and text.endswith(closing):
        text = _text(text.removeprefix(opening).removesuffix(closing), column)
    if any(other in text for other in _TAGS):
        raise DataError(f"{column}: holds a tag of the response template, unbalanced or in the middle")
    return text


def _options(value: Any, column: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise DataError(f"{column}: not a list of texts")
    return [_text(option, column) for option in value]


def _choices(options: list[str], answer: str, column: str) -> tuple[list[str], str]:
    """Options with letters where the answer is a letter, and the letter where it is the text of such an option."""
    letter = answer.strip("().") if _LETTER.fullmatch(answer) and answer not in options else None
    if letter and not all(map(_LETTERED.match, options)):
        if len(options) > len(ascii_uppercase):
            raise DataError(f"{column}: the letter {letter} of {len(options)} options, which have none")
        options = [f"{own}. {option}" for own, option in zip(ascii_uppercase, options, strict=False)]
    if not all(map(_LETTERED.match, options)):
        return options, answer
    texts = {_LETTERED.sub("", option, count=1).strip(): option.lstrip("(")[0] for option in options}
    if letter and letter not in texts.values():
        raise DataError(f"{column}: {letter} is none of the {len(options)} options")
    return options, texts.get(answer, answer)


def _media(fields: Mapping[str, Any], columns: ColumnsConfig, root: Path) -> list[Encoded]:
    """Pictures, then videos."""
    said = _value(fields, columns.media_type, missing=None) if columns.media_type else None
    said = said.lower() if isinstance(said, str) else said
    if said not in (None, "", "text", *get_args(MediaKind)):
        raise DataError(f"{columns.media_type}: {str(said)[:_MAX_KIND_CHARS]!r} is none of image, video and text")
    first: MediaKind = "video" if said == "video" else "image"
    found: list[Encoded] = []
    for kind, column in ((first, columns.images), ("video", columns.videos)):
        value = _value(fields, column, missing=None) if column else None
        values = value if isinstance(value, list) else [] if value is None or value == "" else [value]
        found += [_encoded(kind, one, str(column), root) for one in values]
    if said in get_args(MediaKind) and not found:
        raise DataError(f"{columns.media_type}: says {said}, and {columns.images} holds none")
    return found


def _in_order(text: str, media: Sequence[Encoded], column: str) -> tuple[Encoded, ...]:
    marked = re.findall("|".join(MARKS), text)
    if not marked:
        return tuple(media)
    for mark, kind in MARKS.items():
        marks, there = marked.count(mark), sum(one.kind == kind for one in media)
        if marks != there:
            raise DataError(f"{column}: {marks} {mark} for {there} {kind}s")
    left = {kind: iter([one for one in media if one.kind == kind]) for kind in MARKS.values()}
    return tuple(next(left[MARKS[mark]]) for mark in marked)


def _encoded(kind: MediaKind, value: Any, column: str, root: Path) -> Encoded:
    if isinstance(value, Mapping):  # datasets' Image: bytes first, since its path may be somebody else's
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Encoded(kind, value, None)
    if not isinstance(value, str) or not value:
        raise DataError(f"{column}: neither a path nor bytes but {type(value).__name__}")
    shown = shortened(value)
    if "://" in value:
        raise DataError(f"{column}: {shown} is an address; download it first")
    try:
        path = path_below(root, value)
    except DataError as error:
        raise DataError(f"{column}: {error}") from None
    if not path.is_file():
        raise DataError(f"{column}: {shown}: no such file below {root}")
    return Encoded(kind, None, path)
