"""Once per set of files: every row becomes a question that the model can be asked, or a line that says why not.

    rows ─► question ─► media decoded, stored ─► duplicate? fits? its answer judged right? ─► questions.jsonl
                 └──────────────┴──────────────────────────────┴─ no ────────────────────► quarantine.jsonl

Rows are settled in order, each by one line in one file, so an interrupted preparation goes on where it stopped and
the counts add up to the input.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ral_system.config.data import FilesConfig, SourceConfig
from ral_system.data.chat import ChatRenderer
from ral_system.data.sources.evidence import to_regions
from ral_system.data.sources.hub import source_survey
from ral_system.data.sources.questions import Question, given_id, listed
from ral_system.data.sources.rows import read_questions
from ral_system.errors import DataError
from ral_system.families.family import PixelBudget, sized
from ral_system.media.decoders import Decoders
from ral_system.media.store import MediaStore
from ral_system.observability.jsonl import JsonLines, read_objects
from ral_system.protocols import Rewarder
from ral_system.types import (
    Completion,
    FinishReason,
    Media,
    MediaKind,
    Prompt,
    Region,
    RewardStatus,
    Split,
    Verdict,
    VideoSampling,
)

QUESTIONS_FILE, QUARANTINE_FILE, REFUSED_FILE = "questions.jsonl", "quarantine.jsonl", "refused"
MIN_ROWS_TO_JUDGE = 100
RULES = 6
"""Version of the rules that decide over rows; raise it with every change, so files are prepared again."""

Cause = Literal["broken", "duplicate", "too_long"]
_AT_ONCE = 128
_MAX_REASON_CHARS = 400
_COLUMN = re.compile(r"([A-Za-z_][\w.-]*)(?:\[\d+\])?:(?: |$)")
_NAMES = re.compile(r", (?:which|whose \S+) has ")
_OWN = re.compile(r"[/'\d]|\w\.\w")


@dataclass(frozen=True, slots=True)
class PreparedQuestion:
    """A line of questions.jsonl.

    Example: `PreparedQuestion(id="main/17", given_id="47", split="train", kind="numerical",
    question="<image> How many ?", answer="3", thought=None, media=(Media(…),), tokens=311, content="9f86d0…")`
    """

    id: str
    """Source and row number."""
    given_id: str | None
    """Id in the file, if it has a column for it."""
    split: Split
    kind: str
    question: str
    """Question with marks where media stand, options, and the instruction of its kind."""
    answer: str
    thought: str | None
    media: tuple[Media, ...]
    tokens: int
    """Length of the prompt, including visual tokens and the system turn."""
    content: str
    """Digest of the question and its media, which duplicates share."""
    evidence: tuple[Region, ...] = ()
    """Where the answer is to be seen, as far as the file says it."""

    @property
    def source(self) -> str:
        """Name of the source in data.sources."""
        return self.id.rpartition("/")[0]

    @property
    def subject(self) -> str:
        """Key of the split between train and held-out: the media, or the question if there are none."""
        return "".join(medium.digest for medium in self.media) or self.content


@dataclass
class Tally:
    """Counts of used and rejected rows so far."""

    rows: int = 0
    used: Counter[Split] = field(default_factory=Counter)
    left_out: Counter[Cause] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Counts of broken rows by `kind_of_reason`."""
    examples: dict[str, str] = field(default_factory=dict)
    """The first reason of each kind, verbatim."""
    absent: list[str] = field(default_factory=list)
    """Configured columns that no row has, as `data.sources.main.columns.videos=videos`."""

    @property
    def settled(self) -> int:
        """Rows that have a line in either file."""
        return self.used.total() + self.left_out.total()

    def summary(self) -> dict[str, Any]:
        """Return plain values, with the most frequent reasons."""
        counts = {"rows": self.rows, "used": dict(self.used), "left_out": dict(self.left_out)}
        return counts | {"reasons": dict(self.reasons.most_common(20)), "absent": self.absent}


@dataclass(frozen=True, slots=True)
class _Left:
    """A row that is left out."""

    id: str
    given_id: str | None
    cause: Cause
    reason: str


class Preparation:
    """Prepares `config`'s files into `folder`.

    `max_tokens` is the longest prompt that leaves room for a response. `judge` must give each answer, as a response, a
    correctness above 0. `thought_text` is the response that a thought and an answer make for sft; None: nobody imitates
    thoughts, and they are not read.
    """

    def __init__(
        self,
        config: FilesConfig,
        folder: Path,
        store: MediaStore,
        *,
        renderer: ChatRenderer,
        budgets: Mapping[MediaKind, PixelBudget],
        max_tokens: int,
        judge: Rewarder,
        thought_text: Callable[[str, str], str] | None,
    ) -> None:
        self._config, self._folder, self._store = config, folder, store
        self._renderer, self._budgets, self._max_tokens = renderer, budgets, max_tokens
        self._judge, self._thought_text = judge, thought_text
        self._instructions = {kind.strip().lower(): line for kind, line in config.instructions.items()}
        self._seen: dict[str, tuple[str, str]] = {}
        self.tally = Tally()

    def total(self) -> int:
        """Rows of all sources. Raises DataError for a file that cannot be read, and for one that lacks columns."""
        self.tally.rows, self.tally.absent = 0, []
        for name, source in self._config.sources.items():
            found = source_survey(name, source)
            if not found.rows:
                raise DataError(
                    f"data.sources.{name}.path={source.path}: holds no rows; correct it, or remove the source"
                )
            if found.columns:  # of no row that is an object the rows themselves say so
                self._check_columns(name, source, found.columns)
            self.tally.rows += found.rows
        return self.tally.rows

    def _check_columns(self, name: str, source: SourceConfig, there: Collection[str]) -> None:
        """Raise DataError if no row has a needed column, or any media column; note other missing columns."""
        named = {field: str(column) for field, column in source.columns.model_dump().items() if column is not None}
        if self._thought_text is None:
            named.pop("thought", None)
        absent = [field for field, column in named.items() if column.partition(".")[0] not in there]
        needed = [field for field in absent if field in ("question", "answer", "thought")]
        media = [field for field in ("images", "videos") if field in named]
        without_media = bool(media) and set(media) <= set(absent)
        if needed or without_media:
            wrong = needed[:1] or media
            fields = ", ".join(f"data.sources.{name}.columns.{field}={named[field]}" for field in wrong)
            remedy = "set it to one of these" if needed else "set it to one of these, or to null"
            if len(wrong) > 1:
                remedy = "set one to one of these, or both to null"
            raise DataError(
                f"{fields}: not in any row of {Path(source.path).name}, which has {listed(there)}; {remedy}"
            )
        self.tally.absent += [f"data.sources.{name}.columns.{field}={named[field]}" for field in absent]

    def run(self, show: Callable[[Tally], None]) -> None:
        """Settle every row that is not settled yet. Raises DataError when too many are broken; the next
        start judges all rows again, since they may have been repaired.
        """
        if (self._folder / REFUSED_FILE).exists():
            self._forget()
        settled = self._resume()
        with (
            closing(JsonLines(self._folder / QUESTIONS_FILE)) as self._questions,
            closing(JsonLines(self._folder / QUARANTINE_FILE)) as self._quarantine,
            decoders_of(self._config, self._store, self._renderer.family.frames_per_view) as decoders,
        ):
            for name, source in self._config.sources.items():
                rows = self._rows(name, source, settled[name])
                decoded = decoders.stored((row, row[1].media if isinstance(row[1], Question) else ()) for row in rows)
                while chunk := list(islice(decoded, _AT_ONCE)):
                    self._settle([self._row(source, *row, found) for row, found in chunk])
                    show(self.tally)
        self._check_rate(at_least=1)

    def _resume(self) -> Counter[str]:
        """Rows per source that have their line already; none where one is missing before another, after a power cut."""
        settled: defaultdict[str, set[int]] = defaultdict(set)
        questions, left = (list(read_objects(self._folder / name)) for name in (QUESTIONS_FILE, QUARANTINE_FILE))
        for line in (*questions, *left):
            source, _, number = line["id"].rpartition("/")
            settled[source].add(int(number))
        if sum(map(len, settled.values())) < len(questions) + len(left) or any(
            max(numbers) >= len(numbers) for numbers in settled.values()
        ):
            self._forget()
            return Counter()
        for line in questions:
            self._seen[line["content"]] = (line["id"], line["answer"])
            self.tally.used[line["split"]] += 1
        for line in left:
            self._count(_Left(line["id"], line["given_id"], line["cause"], line["reason"]))
        return Counter({source: len(numbers) for source, numbers in settled.items()})

    def _forget(self) -> None:
        for name in (QUESTIONS_FILE, QUARANTINE_FILE, REFUSED_FILE):
            (self._folder / name).unlink(missing_ok=True)

    def _rows(self, name: str, source: SourceConfig, first: int) -> Iterator[tuple[str, Question | _Left]]:
        for row, question in read_questions(name, source, first=first, thoughts=self._thought_text is not None):
            id = f"{name}/{row.number}"
            if isinstance(question, Question):
                yield id, question
            else:
                given = given_id(row.fields, source.columns) if row.fields is not None else None
                yield id, _Left(id, given, "broken", question)

    def _row(
        self, source: SourceConfig, id: str, question: Question | _Left, found: tuple[Media, ...] | DataError
    ) -> PreparedQuestion | _Left:
        """Settle everything about a row that does not depend on other rows."""
        if isinstance(question, _Left):
            return question
        left = _Left(id, question.id, "broken", "")
        if isinstance(found, DataError):
            return replace(left, reason=str(found))
        instruction = self._instructions.get(question.kind, self._instructions.get("default", ""))
        text = f"{question.text}\n{instruction}" if instruction else question.text
        try:
            media = tuple(sized(medium, self._budgets) for medium in found)
            evidence = to_regions(question.evidence, found)
            prompt = self._renderer.prompt(id=id, kind=question.kind, question=text, answer="", media=media)
            self._renderer.check(question.answer)
            if question.thought is not None and self._thought_text is not None:
                self._renderer.response(self._thought_text(question.thought, question.answer))
        except (DataError, ValueError) as error:
            return replace(left, reason=str(error).removeprefix(f"prompt {id}: "))
        if len(prompt.token_ids) > self._max_tokens:
            room = f"{self._max_tokens:,} (rollout.max_model_len - rollout.max_new_tokens) leave room for a response"
            reason = f"{len(prompt.token_ids):,} tokens, at most {room}"
            return replace(left, cause="too_long", reason=reason)
        content = hashlib.sha256("\x00".join([text, *(m.digest for m in media)]).encode()).hexdigest()
        prepared = PreparedQuestion(
            id=id,
            given_id=question.id,
            split="train",
            kind=question.kind,
            question=text,
            answer=question.answer,
            thought=question.thought,
            media=media,
            tokens=len(prompt.token_ids),
            content=content,
            evidence=evidence,
        )
        return replace(prepared, split=self._split(source, prepared.subject))

    def _split(self, source: SourceConfig, subject: str) -> Split:
        """Questions about the same media are on the same side."""
        if source.split != "both":
            return source.split
        return "held_out" if drawn(self._config.seed, subject) < self._config.held_out else "train"

    def _settle(self, rows: Sequence[PreparedQuestion | _Left]) -> None:
        """Write each row's line, after the checks that need other rows and the verifier."""
        usable = [row for row in rows if isinstance(row, PreparedQuestion)]
        wrong = self._misjudged(usable)
        for row in rows:
            if isinstance(row, PreparedQuestion):
                if row.id in wrong:
                    row = _Left(row.id, row.given_id, "broken", wrong[row.id])
                elif row.content in self._seen:
                    first, answer = self._seen[row.content]
                    differs = "" if answer == row.answer else f", but for its answer {row.answer[:80]!r}"
                    row = _Left(row.id, row.given_id, "duplicate", f"the same as {first}{differs}")
            if isinstance(row, PreparedQuestion):
                self._seen[row.content] = (row.id, row.answer)
                self._questions.append(asdict(row))
                self.tally.used[row.split] += 1
            else:
                row = replace(row, reason=_printable(row.reason)[:_MAX_REASON_CHARS])
                self._quarantine.append(asdict(row))
                self._count(row)
                self._check_rate(at_least=MIN_ROWS_TO_JUDGE)

    def _misjudged(self, rows: Sequence[PreparedQuestion]) -> dict[str, str]:
        """Map row ids to why the verifier cannot use the row's answer: it fails on it, or judges it wrong."""
        verdicts = self._verdicts(rows)
        for row in rows:
            if verdicts[row.id].status is RewardStatus.TIMEOUT:  # alone: the machine may just have been busy
                verdicts |= self._verdicts([row])
        wrong = {}
        for row in rows:
            verdict = verdicts[row.id]
            if verdict.status is not RewardStatus.OK:
                wrong[row.id] = f"the verifier cannot judge the answer {row.answer[:80]!r}: {verdict.detail}"
            elif verdict.parts["correctness"] <= 0:
                wrong[row.id] = f"the verifier finds the answer {row.answer[:80]!r} wrong when it is given"
        return wrong

    def _verdicts(self, rows: Sequence[PreparedQuestion]) -> dict[str, Verdict]:
        for row in rows:
            prompt = Prompt(row.id, row.kind, "", row.answer, (), ())
            text = f"<answer>{row.answer}</answer>"
            self._judge.submit([Completion(row.id, 0, (), (), text, FinishReason.STOP, 0)], prompt)
        verdicts = self._judge.collect()
        return {row.id: verdicts[f"{row.id}#0"] for row in rows}

    def _count(self, row: _Left) -> None:
        self.tally.left_out[row.cause] += 1
        if row.cause == "broken":
            kind = kind_of_reason(row.reason)
            self.tally.reasons[kind] += 1
            self.tally.examples.setdefault(kind, row.reason)

    def _check_rate(self, at_least: int) -> None:
        broken, settled = self.tally.left_out["broken"], self.tally.settled
        if settled >= at_least and broken > self._config.max_broken * settled:
            kind, count = self.tally.reasons.most_common(1)[0]
            most = f"most often, in {count} rows: " if count > 1 else "for example: "
            (self._folder / REFUSED_FILE).touch()
            raise DataError(
                f"{broken} of {settled} rows cannot be used, more than data.max_broken={self._config.max_broken:g}; "
                f"{most}{self.tally.examples[kind]}. See {self._folder / QUARANTINE_FILE}; "
                "fix the rows or data.sources, or raise data.max_broken"
            )


def kind_of_reason(reason: str) -> str:
    """Reduce a reason to its kind: its column and words, without the names and numbers of its row."""
    named = _COLUMN.match(reason)
    column, rest = (named[1], reason[named.end() :]) if named else ("", reason)
    words = ["…" if _OWN.search(word) else word for word in _NAMES.split(rest)[0].split()]
    return " ".join([f"{column}:", *words] if column else words)


def drawn(seed: int, subject: str) -> float:
    """Return a number in [0, 1]; questions whose number is below `data.held_out` are held out."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{subject}".encode()).digest()[:8]) / 2**64


def _printable(text: str) -> str:
    """Return the text on one line, without terminal control characters."""
    line = " ".join(text.split())
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)


def decoders_of(config: FilesConfig, store: MediaStore, frames_per_view: int) -> Decoders:
    """Start processes that decode as `config` says; a video gets a multiple of `frames_per_view` frames."""
    sampling = VideoSampling(config.video.fps, config.video.max_frames, config.video.min_frames, frames_per_view)
    return Decoders(store, sampling, workers=config.workers, timeout_s=config.timeout_s)


def read_prepared(folder: Path) -> list[PreparedQuestion]:
    """Read all lines of questions.jsonl."""
    return [_prepared(line) for line in read_objects(folder / QUESTIONS_FILE)]


def _prepared(line: dict[str, Any]) -> PreparedQuestion:
    media = tuple(Media.parse(medium) for medium in line["media"])
    return PreparedQuestion(**line | {"media": media, "evidence": tuple(Region(**each) for each in line["evidence"])})
