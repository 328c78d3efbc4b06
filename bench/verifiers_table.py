"""`python -m bench.verifiers_table`: the table of verifiers in docs/data.md, from their docstrings."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

from ral_system.registry import VERIFIERS

TARGET = Path(__file__).parents[1] / "docs" / "data.md"
BEGIN, END = "<!-- written by `python -m bench.verifiers_table` -->", "<!-- end of the table of verifiers -->"


def main() -> None:
    """Write the table into its place in the page."""
    page = TARGET.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    TARGET.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{rest[rest.index(END) :]}", encoding="utf-8")
    print(f"{TARGET} is written")


def table() -> str:
    """Return one row for each verifier of this package: its name, what it reads, and its score."""
    lines = ["| `reward.verifier` | reads | score |", "|---|---|---|"]
    for name in VERIFIERS.names:
        if VERIFIERS.is_built_in(name):
            score = VERIFIERS.get(name)
            lines.append(f"| `{name}` | {_first(import_module(score.__module__))} | {_first(score)} |")
    return "\n".join(lines)


def _first(documented: object) -> str:
    """Return the first paragraph of a docstring, up to its errors, as a cell of a table."""
    paragraph = (inspect.getdoc(documented) or "").partition("\n\n")[0]
    text = re.sub(r"\s+", " ", paragraph).partition(" Raises ")[0].removeprefix("Return ").rstrip(".")
    return text[:1].upper() + text[1:].replace("|", r"\|")


if __name__ == "__main__":
    main()
