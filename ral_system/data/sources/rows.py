"""Reading of a source's rows: each is a question, or comes with the reason why it cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ral_system.config.data import ColumnsConfig, SourceConfig
from ral_system.data.sources.files import Row, read_rows
from ral_system.data.sources.hub import located
from ral_system.data.sources.questions import Question, read_question
from ral_system.errors import DataError


def read_questions(
    name: str, source: SourceConfig, *, first: int = 0, thoughts: bool = True
) -> Iterator[tuple[Row, Question | str]]:
    """Yield every row of `data.sources.<name>` from number `first` on, with its question or what is wrong with it.

    Media are named, not opened. Raises DataError for a file that cannot be read.
    """
    path = located(name, source)
    root = Path(source.root) if source.root is not None else path if path.is_dir() else path.parent
    for row in islice(read_rows(path, needed_columns(source.columns), source.files), first, None):
        if row.fields is None:
            yield row, row.problem
            continue
        try:
            yield row, read_question(row.fields, source.columns, root, thoughts=thoughts)
        except DataError as error:
            yield row, str(error)


def needed_columns(columns: ColumnsConfig) -> set[str]:
    """Return the top-level columns of the file that the configured columns need."""
    return {str(name).partition(".")[0] for name in columns.model_dump().values() if name is not None}
