"""docs/data.md lists every verifier of this package, as its docstrings describe it."""

from bench.verifiers_table import BEGIN, END, TARGET, table
from ral_system.registry import VERIFIERS


def test_the_table_is_up_to_date() -> None:
    page = TARGET.read_text(encoding="utf-8")
    written = page[page.index(BEGIN) + len(BEGIN) : page.index(END)].strip()
    assert written == table(), "run python -m bench.verifiers_table"


def test_every_verifier_has_a_row_without_an_empty_cell() -> None:
    rows = [[cell.strip() for cell in row.replace(r"\|", "").strip("|").split("|")] for row in table().splitlines()[2:]]
    assert [name for name, *_ in rows] == [f"`{name}`" for name in VERIFIERS.names if VERIFIERS.is_built_in(name)]
    assert all(len(row) == 3 and all(row) for row in rows)
