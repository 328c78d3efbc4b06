"""Refuses the constructions that readers stumble over: `python -m tests.prose`, part of `make lint`.

It reads docstrings, comments and messages of the Python files, and the Markdown and YAML files. In tests, string
literals are data and are not read. Code in Markdown is not read either.
"""

import ast
import io
import itertools
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

ROOTS = ("actors", "bench", "conf", "docker", "docs", "examples", "launch", "ral_system", "tests")
OWN_EXAMPLES = ("tests/prose.py", "tests/unit/test_prose.py")
MAX_COLUMNS = 120

FRAGMENT = re.compile(r"(Of|That|Those|Whose|Whom|And|The same)\b")
ADVERBIAL = re.compile(
    r"(As|By|For|From|In|On|With|Without|At|Under|Over|Per|About|To|Before|After|Against|So many|Raises|It)\b"
)
CLAUSE = re.compile(r"(What|How|Whether|Which|Where|Why|When|Who)\b")
AT_END = r"(?=\s*([.;:)]|\Z|\n\s*\n))"
WORDS = {
    r"\bmend(s|ed|ing)?\b": "fix or repair",
    r"\banew\b": "again",
    r"\bforeseen\b": "predicted; for a share of tokens: token accuracy",
    r"\bin vain\b": "has no effect",
    r"\bto be had\b": "available",
    r"\b(all|none|one|some|most) of which\b": "start a new sentence",
    r"\bsee to (the|it|that|a)\b": "check or fix",
    r", too(?=\s*([.,;:)]|\Z))": "also, before the verb",
    r"\bas it is" + AT_END: "unchanged, as written, verbatim",
    r"\b(whoever|whom)\b": "name the person or the part of the system",
    # "there is no login" and "is no longer" are English; "x is no number" is "x is not a number".
    r"(?<!there\s)\b(?:is|are|was|were) no (?!longer\b|more\b|less\b|\w+er\b(?= than))\w+": "is not a …",
}
"""Banned everywhere."""
LATER = {
    r", so that\b": "', so' for a result; for a purpose 'to …', or 'so that' without the comma",
    r"\bof which\b": "start a new sentence, or 'with'",
    r"\bin the place of\b": "instead of; 'replace A by B'",
    r"\bto speak of\b": "almost no",
    r"\bbit by bit\b": "bit for bit",
    r"\blikelier\b": "more likely",
    r"\bwhat [\w .`-]{1,40} makes? of\b": "the results of … for",
    r"\b(?:comes|came|becomes|became) of\b": "name the result",
    r"\b(?:say|says|said) of\b": "say about, report",
    r"\bwithout an end\b(?! of)": "unbounded; unclosed",
    r"\ball the same\b": "also, still",
}
"""Banned outside of RECORDS."""
RECORDS = ("docs/results.md", "docs/studies/attention_choices.md", "docs/studies/attention_controls.md")
"""What was measured and registered stays in the words of its time."""


def _compiled(words: dict[str, str]) -> dict[re.Pattern[str], str]:
    return {re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE): hint for pattern, hint in words.items()}


PATTERNS, PATTERNS_OF_RECORDS = _compiled(WORDS | LATER), _compiled(WORDS)


def in_text(text: str, line: int, patterns: dict[re.Pattern[str], str] = PATTERNS) -> Iterator[tuple[int, str]]:
    """Yield the line and the complaint of every banned construction in a text that begins on `line`."""
    for pattern, hint in patterns.items():
        for match in pattern.finditer(text):
            yield line + text.count("\n", 0, match.start()), f"{' '.join(match[0].split())!r}: write {hint}"


def in_python(source: str, literals: bool = True) -> Iterator[tuple[int, str]]:
    """Check docstrings (including those of attributes), comments, and, if asked to, all other string literals."""
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    verbs = {id(node.body[0].value) for node in nodes if _is_called(node) and isinstance(node.body[0], ast.Expr)}
    members = set(_members(nodes))
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (literals or id(node) in docstrings):
            yield from in_text(node.value, node.lineno)
            if id(node) in docstrings and (match := FRAGMENT.match(node.value.strip())):
                yield node.lineno, f"docstring begins with {match[0]!r}: write a phrase that stands alone in hover help"
            if id(node) in verbs and (match := CLAUSE.match(node.value.strip())):
                yield node.lineno, f"docstring begins with {match[0]!r}: begin with a verb, as in 'Return whether …'"
            if id(node) in members and (match := ADVERBIAL.match(node.value.strip())):
                yield node.lineno, f"docstring begins with {match[0]!r}: begin with a verb, or with a noun for a field"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from in_text(token.string, token.start[0])


def _members(nodes: list[ast.AST]) -> Iterator[int]:
    """Yield the ids of the docstrings of functions and class fields; the name of a test may begin its docstring."""
    for node in nodes:
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("test_")
        if function and isinstance(node.body[0], ast.Expr):
            yield id(node.body[0].value)
        if isinstance(node, ast.ClassDef):
            for field, after in itertools.pairwise(node.body):
                if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                    yield id(after.value)


def _is_called(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return whether a node defines a function that is called with parentheses, and not a property."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not any(
        "property" in ast.unparse(decorator) for decorator in node.decorator_list
    )


def in_markdown(source: str, patterns: dict[re.Pattern[str], str] = PATTERNS) -> Iterator[tuple[int, str]]:
    """Check the words outside code, and the width of lines that are neither code, nor a table row, nor one link."""
    prose, fenced = [], False
    for number, text in enumerate(source.split("\n"), 1):
        fence = text.lstrip().startswith("```")
        code = fenced or fence or text.startswith("    ")
        fenced ^= fence
        prose.append("" if code else re.sub("`[^`]*`", "`x`", text))
        link = re.fullmatch(r"\W*!?\[[^\]]*\]\(\S+\)\W*|\S+", text)
        if len(text) > MAX_COLUMNS and not (code or link or text.lstrip().startswith("|")):
            yield number, f"{len(text)} columns: break the line at {MAX_COLUMNS}"
    yield from in_text("\n".join(prose), 1, patterns)


def in_file(path: Path) -> Iterator[tuple[int, str]]:
    """Check a file by the rules of its kind."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return in_python(source, literals=path.parts[0] != "tests")
    if path.suffix == ".md":
        return in_markdown(source, PATTERNS_OF_RECORDS if str(path) in RECORDS else PATTERNS)
    return in_text(source, 1)


def main() -> int:
    """Print every complaint with its place; 1 if there are any."""
    found = [*Path().glob("*.md"), *(path for root in ROOTS for path in sorted(Path(root).rglob("*.*")))]
    paths = [path for path in found if path.suffix in (".py", ".md", ".yaml") and path.is_file()]
    complaints = [
        f"{path}:{line}: {complaint}"
        for path in paths
        if not str(path).startswith(OWN_EXAMPLES)
        for line, complaint in sorted(in_file(path))
    ]
    print("\n".join(complaints) or f"prose: {len(paths)} files read, nothing to change")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
