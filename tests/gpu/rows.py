"""Figures of the tests in this folder, as rows that `python -m bench.gpu` finds in their output."""


def row(*cells: str) -> None:
    """Print a line of a Markdown table, on a line of its own where pytest has written dots."""
    print(f"\n| {' | '.join(cells)} |", flush=True)
