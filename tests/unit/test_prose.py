from pathlib import Path

import pytest

from tests import prose

FINE = '''"""Losses of a batch. There is no reference model here, and a chunk is no slower than the whole."""

STEPS = 3
"""Updates per batch; none of them is skipped."""


def loss(tokens):
    """Return the mean loss, too small to matter."""
    raise ValueError(f"steps={tokens}: not a number; give one")  # as it is now, this cannot happen
'''


def test_plain_text_passes():
    assert list(prose.in_python(FINE)) == []
    assert list(prose.in_markdown("# Title\n\nText as it is now.\n")) == []


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ('"""Of a batch."""', 1),
        ('"""\n    The same, on another device.\n"""', 1),
        ('STEPS = 3\n\n"""Whose steps these are."""', 3),
        ("x = 1\n# mended by hand", 2),
        ('raise ValueError(f"{name} is no benchmark")', 1),
        ('"""Begins well.\n\nStops what it started, too."""', 3),
        ('"""Whatever is no\nnumber."""', 1),
        ('print("keeps the text as it is")', 1),
        ('"""A lock; whoever has it may write."""', 1),
        ('"""Prompts are text, so\n    that the ideal is known."""', 1),
        ("x = 1  # groups, of which one is empty", 1),
        ('def fits(x):\n    """Whether it fits."""', 2),
        ('class A:\n    async def held(self):\n        """\n        What it holds."""', 3),
        ('def pad(rows):\n    """With zeros at the end."""', 2),
        ('def check(row):\n    """Raises ValueError for an empty row."""', 2),
        ('class A:\n    @property\n    def flops(self):\n        """In each layer, the products."""', 4),
        ('class Held:\n    peak: int\n    """At the highest."""', 3),
    ],
)
def test_a_banned_construction_is_found_on_its_line(source, line):
    assert [at for at, _ in prose.in_python(source)] == [line]


def test_a_property_may_be_a_clause():
    assert (
        list(prose.in_python('class A:\n    @cached_property\n    def fits(self):\n        """Whether it fits."""'))
        == []
    )


def test_the_name_of_a_test_may_begin_its_docstring():
    assert list(prose.in_python('def test_shares():\n    """By hand: a quarter each."""')) == []


def test_a_constant_may_begin_with_a_preposition():
    assert list(prose.in_python('LIMIT = 3\n"""In seconds."""')) == []


def test_literals_of_tests_are_data():
    assert list(prose.in_python('text = "to be had"', literals=False)) == []
    assert len(list(prose.in_python('"""To be had."""', literals=False))) == 1


def test_long_lines_of_prose_only():
    long = "word " * 25 + "end"
    fine = ["| " + long, "    " + long, "```\n" + long + "\n```", "[" + long + "](https://example.org)", "`is no x`"]
    assert list(prose.in_markdown("\n".join(fine))) == []
    assert list(prose.in_markdown("short\n" + long)) == [(2, "128 columns: break the line at 120")]


def test_records_keep_the_words_of_their_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for name in ("results.md", "data.md"):
        (tmp_path / "docs" / name).write_text("Calls take turns, so that all see\nthe same machine, mended.\n")
    results, data = ([at for at, _ in prose.in_file(Path("docs") / name)] for name in ("results.md", "data.md"))
    assert (results, sorted(data)) == ([2], [1, 2])


def test_complaints_fail_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("Plain.\n")
    assert prose.main() == 0
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("# started anew\n")
    assert prose.main() == 1
    assert "tests/test_x.py:1: 'anew': write again" in capsys.readouterr().out
