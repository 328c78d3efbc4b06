"""Rows through the three roles, many at once. Whatever is accepted is on disk before anything else happens to it.

outputs.jsonl         every role's accepted text, so an interrupted row goes on where it was
demonstrations.jsonl  rows that came through
rejected.jsonl        rows that did not, with role, reason and what was said last
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from ral_system.config.synthesis import SynthesisConfig
from ral_system.errors import DataError, SetupError
from ral_system.observability.jsonl import JsonLines, read_objects
from ral_system.synthesis.checks import check_anchored, check_description, check_reasoning
from ral_system.synthesis.rows import ROLES, Generator, MalformedError, Role, Row, UnansweredError

MIN_ROWS_TO_JUDGE = 20
"""Rows after which `max_rejected` may end the run."""
OUTAGE = 8
"""Consecutive rows without an answer after which a server counts as down."""


@dataclass
class Tally:
    """Counts of accepted and rejected rows, including those of earlier runs."""

    accepted: int = 0
    unanswered: int = 0
    rejected: Counter[tuple[Role, str]] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """Number of rows that are accepted or rejected."""
        return self.accepted + self.rejected.total()


class Synthesis:
    """One folder of demonstrations, which may hold some already."""

    def __init__(
        self,
        folder: Path,
        config: SynthesisConfig,
        generators: Mapping[Role, Generator],
    ) -> None:
        self._config, self._generators = config, generators
        self._anchor = re.compile(config.anchor, re.IGNORECASE)
        self._outputs, self._demonstrations, self._rejected = (
            JsonLines(folder / f"{name}.jsonl") for name in ("outputs", "demonstrations", "rejected")
        )
        self._texts: dict[str, dict[Role, str]] = defaultdict(dict)
        for line in _lines(self._outputs, "id", "role", "text"):
            self._texts[line["id"]][line["role"]] = line["text"]
        accepted, rejected = _lines(self._demonstrations, "id"), _lines(self._rejected, "id", "role", "reason")
        self._done = {line["id"] for line in (*accepted, *rejected)}
        self.tally = Tally(accepted=len(accepted))
        self.tally.rejected.update((line["role"], line["reason"]) for line in rejected)
        self._silent_in_a_row = 0

    async def run(self, rows: Iterable[Row], on_row: Callable[[Tally], None] = lambda tally: None) -> Tally:
        """Demonstrate every row that is not done yet; `on_row` hears of each.

        Raises RalError where going on is of no use; nothing is lost.
        """
        waiting: Iterator[Row] = (row for row in rows if row.id not in self._done)
        first = next(waiting, None)
        try:
            for generator in self._generators.values() if first else ():
                await generator.check()
            waiting = chain([first] if first else [], waiting)
            async with asyncio.TaskGroup() as group:
                for _ in range(self._config.concurrency):
                    group.create_task(self._work(waiting, on_row))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for generator in self._generators.values():
                await generator.close()
            for file in (self._outputs, self._demonstrations, self._rejected):
                file.close()
        return self.tally

    async def _work(self, waiting: Iterable[Row], on_row: Callable[[Tally], None]) -> None:
        for row in waiting:  # shared by all workers; nothing else runs between two of its items
            try:
                await self._demonstrate(row)
                self._silent_in_a_row = 0
            except UnansweredError as error:
                self.tally.unanswered += 1
                self._silent_in_a_row += 1
                if self._silent_in_a_row >= OUTAGE:
                    raise SetupError(
                        f"{OUTAGE} rows in a row got no answer ({error}); check the endpoint, then run the same "
                        "command again: nothing that came back is lost"
                    ) from error
            on_row(self.tally)

    async def _demonstrate(self, row: Row) -> None:
        texts = self._texts[row.id]
        for role in ROLES:
            if role in texts:
                continue
            text, reason = "", None
            for _ in range(1 if self._generators[role].deterministic else self._config.attempts):
                try:
                    text = await self._generators[role].generate(row, texts)
                    reason = self._problem(role, text, row, texts)
                except MalformedError as error:
                    text, reason = error.output, error.reason
                if reason is None:
                    break
            if reason is not None:
                self._reject(row, role, reason, text)
                return
            self._outputs.append({"id": row.id, "role": role, "text": text})
            texts[role] = text
        record = row.record
        self._demonstrations.append(
            {"id": row.id, "index": record.index, "kind": record.kind, "question": record.question}
            | {"answer": record.answer, "response": texts["anchorer"].strip()}
        )
        self.tally.accepted += 1
        del self._texts[row.id]

    def _problem(self, role: Role, text: str, row: Row, texts: Mapping[Role, str]) -> str | None:
        if role == "describer":
            return check_description(text)
        if role == "reasoner":
            return check_reasoning(text, row.record.answer)
        return check_anchored(text, row.record.answer, texts["reasoner"], self._anchor)

    def _reject(self, row: Row, role: Role, reason: str, text: str) -> None:
        self._rejected.append({"id": row.id, "role": role, "reason": reason, "output": text})
        self.tally.rejected[role, reason] += 1
        rejected, done = self.tally.rejected.total(), self.tally.done
        if done >= MIN_ROWS_TO_JUDGE and rejected > self._config.max_rejected * done:
            (role, reason), count = self.tally.rejected.most_common(1)[0]
            raise DataError(
                f"{rejected} of {done} rows were rejected, more than synthesis.max_rejected="
                f"{self._config.max_rejected:g}; most often ({count}) the {role}'s text: {reason}. See "
                f"{self._rejected.path}; delete it to have them tried again"
            )


def _lines(file: JsonLines, *keys: str) -> list[dict[str, Any]]:
    return [line for line in read_objects(file.path) if all(key in line for key in keys)]
