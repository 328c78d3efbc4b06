"""Conversion of a row from a user's file to a question, or to the reason why the row is unusable."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, get_args

from ral_system.config.choices import TAGS
from ral_system.config.data import ColumnsConfig
from ral_system.data.sources.evidence import StatedBox, read_boxes
from ral_system.data.sources.files import path_below, shortened
from ral_system.errors import DataError
from ral_system.media.encoded import EncodedMedia
from ral_system.media.videos import looks_like_video
from ral_system.types import MARKS, MediaKind

MAX_QUESTION_CHARS = 50_000

_LARGEST = 1e300
_MAX_THOUGHT_CHARS = 200_000
_MAX_ANSWER_CHARS = 50_000
_MAX_KIND_CHARS = 100
_MAX_ID_CHARS = 100
_LISTED = 8
_LETTER = re.compile(r"\(?([A-Za-z])[.):]*")
_LETTERED = re.compile(r"\(?([A-Za-z])(?!\.[A-Za-z]\.)[.):]+\s*(.*)", re.DOTALL)
"""An option's letter, but not abbreviations such as a.m. and U.S."""
_EDGES = re.compile(r"^[\s\"']+|[\s\"'.,;:!?]+$")


@dataclass(frozen=True, slots=True)
class Question:
    """A usable row."""

    id: str | None
    kind: str
    """Question kind in lower case."""
    text: str
    """Question with as many marks (`MARKS`) as media of each kind, or none at all."""
    answer: str
    thought: str | None
    media: tuple[EncodedMedia, ...]
    """Media in the order of the marks; pictures first if there are none."""
    evidence: tuple[StatedBox, ...]


def read_question(fields: Mapping[str, Any], columns: ColumnsConfig, root: Path, *, thoughts: bool = True) -> Question:
    """The row's question; media are named, not opened. Paths are below `root`. Without `thoughts` these are not read.

    Raises DataError with a reason that names the column.
    """
    text = _question(_value(fields, columns.question), columns.question)
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
        evidence=read_boxes(_value(fields, columns.evidence, missing=None), columns.evidence)
        if columns.evidence
        else (),
    )


def given_id(fields: Mapping[str, Any], columns: ColumnsConfig) -> str | None:
    """Return the row's own id, if it has one, shortened to a readable length."""
    id = _value(fields, columns.id, missing=None) if columns.id else None
    return None if id is None else str(id)[:_MAX_ID_CHARS]


def _kind(fields: Mapping[str, Any], columns: ColumnsConfig) -> str:
    """Return the kind in lower case: kinds are equal whatever their case."""
    kind = _value(fields, columns.kind, missing=None) if columns.kind else None
    if kind is None or kind == "":
        return ""
    if isinstance(kind, (int, float)):
        return str(kind)
    return _short(_text(kind, str(columns.kind)), str(columns.kind), _MAX_KIND_CHARS).lower()


def _short(text: str, column: str, most: int) -> str:
    if len(text) > most:
        raise DataError(f"{column}: {len(text):,} characters, at most {most:,}")
    return text


_REQUIRED = object()


def _value(fields: Any, column: str, missing: Any = _REQUIRED) -> Any:
    """Look up a dotted column name; `missing` is returned, if given, where there is none."""
    found, parts = fields, column.split(".")
    for at, part in enumerate(parts):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, Sequence) and not isinstance(found, str) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif missing is _REQUIRED:
            whose = f"whose {'.'.join(parts[:at])}" if at else "which"
            has = f", {whose} has {listed(found)}" if isinstance(found, Mapping) and found else ""
            raise DataError(f"{column}: not in the row{has}")
        else:
            return missing
    return found


def listed(names: Iterable[str]) -> str:
    """List names alphabetically for messages."""
    every = sorted(map(shortened, names))
    more = [f"{len(every) - _LISTED} others"] if len(every) > _LISTED else []
    return ", ".join([*every[:_LISTED], *more])


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


def _question(value: Any, column: str) -> str:
    """Text, parts of one, or of chat turns what the only user turn says: a system turn is `data.system_prompt`'s."""
    if not (isinstance(value, list) and value and all(isinstance(t, Mapping) and "role" in t for t in value)):
        return _text(_joined(value, column), column)
    said = [turn.get("content") for turn in value if turn["role"] == "user"]
    others = [str(turn["role"]) for turn in value if turn["role"] not in ("system", "user")]
    if others:
        raise DataError(f"{column}: holds a turn of the role {shortened(others[0])}; one user turn is a question")
    if len(said) != 1:
        raise DataError(f"{column}: holds {len(said)} user turns; one is a question")
    return _text(_joined(said[0], column), column)


def _joined(content: Any, column: str) -> Any:
    """Join the parts of a content into one text, with a mark for each medium; anything else is returned unchanged."""
    if not (isinstance(content, list) and content and all(isinstance(p, Mapping) and "type" in p for p in content)):
        return content
    marks = {kind: mark for mark, kind in MARKS.items()}
    texts = []
    for part in content:
        if part["type"] not in ("text", *marks):
            raise DataError(
                f"{column}: a part of the type {shortened(str(part['type']))} is not one of text, image, video"
            )
        texts.append(marks[part["type"]] if part["type"] in marks else part.get("text"))
        if not isinstance(texts[-1], str):
            raise DataError(f"{column}: a part of the type text has no text")
    return "".join(texts)


def _answer(value: Any, column: str) -> str:
    """Return text without the tags that some formats put around it, or a number as written."""
    if isinstance(value, bool) or value is None:
        raise DataError(f"{column}: not an answer but {value}")
    if isinstance(value, (int, float)):
        return _number(value, column)
    return _short(_unwrapped(value, "answer", column), column, _MAX_ANSWER_CHARS)


def _number(value: float, column: str) -> str:
    if abs(value) > _LARGEST or value != value:
        raise DataError(f"{column}: {'nan' if value != value else 'a number beyond 1e300'} is not an answer")
    return repr(value)


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
    if any(other in text for other in TAGS):
        raise DataError(f"{column}: holds a tag of the response template, unbalanced or in the middle")
    return text


def _options(value: Any, column: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or any(type(option) not in (str, int, float) for option in value):
        raise DataError(f"{column}: not a list of texts or numbers")
    return [_text(option, column) if isinstance(option, str) else _number(option, column) for option in value]


def _choices(options: list[str], answer: str, column: str) -> tuple[list[str], str]:
    """Options, with letters where the answer has one; of lettered ones the letter of that which the answer is."""
    if not all(map(_LETTERED.fullmatch, options)):
        said = _LETTERED.fullmatch(answer) or _LETTER.fullmatch(answer)
        if said is None or _folded(answer) in map(_folded, options):
            return options, answer
        if len(options) > len(ascii_uppercase):
            raise DataError(f"{column}: the letter {said[1]} of {len(options)} options, which have none")
        options = [f"{own}. {option}" for own, option in zip(ascii_uppercase, options, strict=False)]
    parts = [found.groups() for found in map(_LETTERED.fullmatch, options) if found]
    return options, _letter([letter.upper() for letter, _ in parts], [text for _, text in parts], answer, column)


def _letter(letters: list[str], texts: list[str], answer: str, column: str) -> str:
    """Return the letter of the option that matches the answer most exactly: by its letter, its text, or both."""
    folded = [_folded(text) for text in texts]
    letter, both = _LETTER.fullmatch(answer), _LETTERED.fullmatch(answer)
    readings: list[tuple[Sequence[object], object]] = [
        (letters, letter and letter[1]),
        (texts, answer),
        (letters, letter and letter[1].upper()),
        (list(zip(letters, folded, strict=True)), both and (both[1].upper(), _folded(both[2]))),
        (folded, _folded(answer)),
    ]
    for options, read in readings:
        meant = [own for own, option in zip(letters, options, strict=True) if option == read]
        if meant and letters.count(meant[0]) == 1 == len(meant):
            return meant[0]
        if meant:
            several = " and ".join(own for own in letters if own in meant)
            raise DataError(f"{column}: {shortened(answer)!r} fits options {several}; give a letter that one has alone")
    raise DataError(f"{column}: {shortened(answer)!r} is not one of the {len(letters)} options")


def _folded(text: str) -> str:
    """Case, spaces, quotes around it and points behind it do not matter, unless there is nothing else."""
    plain = " ".join(text.casefold().split())
    return _EDGES.sub("", plain) or plain


def _media(fields: Mapping[str, Any], columns: ColumnsConfig, root: Path) -> list[EncodedMedia]:
    """Pictures, then videos; where one column holds either and none says which, as their files begin."""
    said = _value(fields, columns.media_type, missing=None) if columns.media_type else None
    said = said.lower() if isinstance(said, str) else said
    if said not in (None, "", "text", *get_args(MediaKind)):
        raise DataError(f"{columns.media_type}: {str(said)[:_MAX_KIND_CHARS]!r} is not one of image, video and text")
    first: MediaKind = "video" if said == "video" else "image"
    found: list[EncodedMedia] = []
    either = columns.images is not None and columns.images == columns.videos
    for kind, column in ((first, columns.images), ("video", None if either else columns.videos)):
        value = _value(fields, column, missing=None) if column else None
        values = value if isinstance(value, list) else [] if value is None or value == "" else [value]
        for at, one in enumerate(values):
            medium = _encoded(kind, one, f"{column}[{at}]" if len(values) > 1 else str(column), root)
            if either and said not in get_args(MediaKind) and looks_like_video(medium.path or medium.encoded or b""):
                medium = replace(medium, kind="video")
            found.append(medium)
    if said in get_args(MediaKind) and not found:
        raise DataError(f"{columns.media_type}: says {said}, and {columns.images} holds none")
    return found


def _in_order(text: str, media: Sequence[EncodedMedia], column: str) -> tuple[EncodedMedia, ...]:
    marked = re.findall("|".join(MARKS), text)
    if not marked:
        return tuple(media)
    for mark, kind in MARKS.items():
        marks, there = marked.count(mark), sum(one.kind == kind for one in media)
        if marks != there:
            raise DataError(f"{column}: {marks} {mark} for {there} {kind}s")
    left = {kind: iter([one for one in media if one.kind == kind]) for kind in MARKS.values()}
    return tuple(next(left[MARKS[mark]]) for mark in marked)


def _encoded(kind: MediaKind, value: Any, column: str, root: Path) -> EncodedMedia:
    if isinstance(value, Mapping):  # datasets' Image: bytes first, since its path may be from another machine
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return EncodedMedia(kind, value, None, name=column)
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
    return EncodedMedia(kind, None, path, name=f"{column}: {shown}")
