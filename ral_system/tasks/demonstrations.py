"""Responses to imitate, from a file that `ral-synthesize` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ral_system.errors import ConfigError, DataError
from ral_system.observability.jsonl import read_objects


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A response to the `index`-th training question."""

    index: int
    question: str
    response: str


def read_demonstrations(path: Path) -> tuple[Demonstration, ...]:
    """Read at least one demonstration, sorted by index. Raises ConfigError, or DataError that names the line."""
    if not path.is_file():
        raise ConfigError(f"data.demonstrations={path}: no such file; make it with ral-synthesize, or set it to null")
    found = {}
    for number, line in enumerate(read_objects(path), 1):
        try:
            demonstration = Demonstration(int(line["index"]), str(line["question"]), str(line["response"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"data.demonstrations={path}: row {number} is not a demonstration ({type(error).__name__}: {error}); "
                "make the file with ral-synthesize"
            ) from error
        found[demonstration.index] = demonstration
    if not found:
        raise DataError(f"data.demonstrations={path} holds no demonstration; see rejected.jsonl beside it")
    return tuple(found[index] for index in sorted(found))
